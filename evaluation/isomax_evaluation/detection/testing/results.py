"""One model under all detectors: what is not kept is fitted and scored; its tables."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_ood.api import Detector

from isomax.calibration import expected_calibration_error
from isomax_adapters.pytorch_ood import detectors_for
from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.loading import loader_of
from isomax_evaluation.detection.fitting import doubt_of_fit, fit, remove_scratch
from isomax_evaluation.detection.large import sample_size
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.detection.testing.intervals import bootstrap, draw
from isomax_evaluation.detection.testing.metrics import COLUMNS, one_score, ood_metrics
from isomax_evaluation.detection.testing.predictions import predictions
from isomax_evaluation.detection.testing.scores import Scores, write_scores
from isomax_evaluation.detection.testing.trial import Trial
from isomax_evaluation.detection.testing.tuning import tuned
from isomax_evaluation.extraction.classes import rates_of_classes, summed_up
from isomax_evaluation.extraction.doubts import doubts_of
from isomax_evaluation.output.files import read_json, write_json
from isomax_evaluation.output.progress import shown, warn
from isomax_evaluation.output.tables import write_table
from isomax_evaluation.speed.costs import COLUMNS as COST_COLUMNS
from isomax_evaluation.speed.costs import cost_of_detectors

COST_IMAGES = 8
# seconds that measuring costs may take: a share of what fitting and scoring took, and no less than
COST_SHARE, COST_LEAST = 0.09, 1.0
RUN = ["loss", "seed"]
CELL = [*RUN, "detector", "ood"]


@dataclass(frozen=True)
class ModelResults:
    """What came out of one model, for the detectors that were asked for."""

    results: pd.DataFrame  #: a row per detector and OOD set
    errors: pd.DataFrame  #: why a row has no value
    tuning: pd.DataFrame  #: as the results, of the images that chose hyperparameters
    hyperparameters: pd.DataFrame
    costs: pd.DataFrame
    classes: pd.DataFrame  #: what it does with the ID test images of each class
    chosen: dict[str, dict[str, Any]]  #: hyperparameters that were chosen by a search
    scores: Scores


def test_model(trial: Trial, names: Sequence[str]) -> ModelResults:
    """Score all test images with all detectors; the tables of the run in its folder.

    Only detectors whose scores are not kept are fitted, and they score only the sets without; the
    model runs only over images whose outputs are not kept, unless a detector takes feature maps or
    images.

    :param names: detectors
    """
    remove_scratch(trial.folder)  # of a killed run
    detectors = detectors_for(trial.model.parts, names)
    chosen = tuned(trial, detectors)
    scores = Scores(trial.cache, {n: _depends_on(trial, n, d) for n, d in detectors.items()})
    hyperparameters = _hyperparameters(trial, detectors, chosen)
    missing = {images.name: scores.missing(images) for images in trial.scored}
    unpriced = []
    if trial.measure_costs:
        unpriced = [n for n in detectors if trial.cache.read(_cost_of(scores, n)) is None]
    asked = {*unpriced, *(name for some in missing.values() for name in some)}
    if asked:
        torch.manual_seed(trial.model.seed)
        fit_and_score(trial, {n: d for n, d in detectors.items() if n in asked}, scores, unpriced)
    summary, classes = _summary(trial)
    cells = list(_cells(trial, scores, trial.sets.known, trial.sets.unknown))
    accuracy = {"accuracy": summary["test_accuracy"], "ECE": summary["test_ECE"]}
    return ModelResults(
        pd.DataFrame(
            [where | accuracy | metrics for where, metrics, _ in cells],
            columns=[*CELL, "accuracy", "ECE", *COLUMNS],
        ),
        pd.DataFrame(
            [where | {"error": reason} for where, _, reason in cells if reason],
            columns=[*CELL, "error"],
        ),
        _tuning(trial, scores),
        hyperparameters,
        _costs(trial, scores),
        classes,
        {name: values for name, values in chosen.items() if values},
        scores,
    )


def fit_and_score(
    trial: Trial, detectors: Mapping[str, Detector], scores: Scores, unpriced: Sequence[str]
) -> None:
    """Fit detectors, score the sets that they have not scored, and measure what some cost."""
    model, progress, started = trial.model, trial.progress, time.perf_counter()
    with shown(progress, f"fitting detectors, {model.name}", len(trial.training)) as advance:
        unfitted = fit(
            model.parts,
            detectors,
            trial.loader(trial.training),
            trial.folder,
            advance,
            trial.keeper(trial.training),
            model.seed,
        )
    fitted = {name: d for name, d in detectors.items() if name not in unfitted}
    for doubt in filter(None, (doubt_of_fit(*item) for item in fitted.items())):
        warn(progress, f"{model.name}, {doubt}")
    for images in trial.scored:
        names, outputs = scores.missing(images), trial.keeper(images)
        if not names and outputs.read() is not None:
            continue
        with shown(progress, f"scoring {images.name}, {model.name}", len(images)) as advance:
            _, new, failed = score(
                model.parts,
                {name: fitted[name] for name in names if name in fitted},
                trial.loader(images),
                advance,
                outputs,
                model.seed,
            )
        failed |= {name: unfitted[name] for name in names if name in unfitted}
        scores.keep(images, new, failed)
    if unpriced:
        budget = max(COST_LEAST, COST_SHARE * (time.perf_counter() - started))
        priced = {name: d for name, d in fitted.items() if name in unpriced}
        costs = measure_costs(trial, priced, budget)
        for name in unpriced:  # of one that cannot score, that it has none
            trial.cache.write(_cost_of(scores, name), costs.get(name, {}))


def measure_costs(
    trial: Trial, detectors: Mapping[str, Detector], budget: float
) -> dict[str, dict[str, Any]]:
    """What a score of each detector costs, in so many seconds."""
    model, known = trial.model, trial.sets.known
    few = known.take(np.arange(min(COST_IMAGES, len(known)))).decoded(model.decoding)
    batch, _ = next(iter(loader_of(model.transform, 0, few)))
    doing = f"measuring what scores cost, {model.name}"
    with shown(trial.progress, doing, len(detectors)) as advance:
        costs = cost_of_detectors(
            model.softmax_twin(),
            model.parts,
            detectors,
            batch.to(model.parts.device),
            budget,
            lambda name: advance(1, f"measuring what {name} costs, {model.name}"),
        )
    training = trial.keeper(trial.training).read()
    costs["fit_images"] = [
        None
        if training is None or not row.fitted
        else sample_size(detectors[row.detector], training)
        for row in costs.itertuples()
    ]
    return {row["detector"]: row for row in costs.to_dict("records")}


def write_tables(trial: Trial, done: ModelResults) -> None:
    """The tables of one model, in the folder of its run."""
    folder, sets = trial.folder, [trial.sets.known, *trial.sets.unknown]
    for name in ("results", "errors", "hyperparameters", "costs"):
        write_table(folder / f"{name}.csv", getattr(done, name))
    write_table(folder / "classes.csv", done.classes.drop(columns=RUN))
    said = [predictions(trial.model, images, trial.outputs(images)) for images in sets]
    write_table(folder / "predictions.csv", pd.concat(said, ignore_index=True))
    if trial.choosing:
        write_table(folder / "tuning.csv", done.tuning)
        write_json(folder / "hyperparameters.json", done.chosen)
    else:  # of what was asked before
        for name in ("tuning.csv", "hyperparameters.json"):
            (folder / name).unlink(missing_ok=True)
    for path in (folder / "scores").glob("*.csv"):
        path.unlink()
    for images in sets:
        write_scores(folder, images, done.scores.of(images)[0])


def tell_doubts(trial: Trial) -> None:
    """Warn of a model that has learnt nothing, or whose threshold rejects nothing."""
    model, outputs = trial.model, trial.outputs(trial.sets.all_known)
    for doubt in doubts_of(
        model.parts.model, model.calibration, outputs.logits, outputs.labels,
        scores=model.own_scores(outputs),
    ):  # fmt: skip
        warn(trial.progress, f"{model.name}: {doubt}")


def _depends_on(trial: Trial, name: str, detector: Detector) -> dict[str, Any]:
    """What a detector, and so its scores, depend on."""
    values = {key: repr(value) for key, value in detector.get_hyperparameters().items()}
    fitted_on = trial.training_digest if detector.requires_fit else None
    return trial.about | {"detector": name, "hyperparameters": values, "fitted_on": fitted_on}


def _cost_of(scores: Scores, name: str) -> dict[str, Any]:
    return {"costs": dict(scores.detectors[name])}


def _costs(trial: Trial, scores: Scores) -> pd.DataFrame:
    rows = []
    if trial.measure_costs:
        rows = [trial.cache.read(_cost_of(scores, name)) for name in scores.detectors]
    columns = ["loss", *COST_COLUMNS, "fit_images"]
    return pd.DataFrame([{"loss": trial.model.name} | row for row in rows if row], columns=columns)


def _hyperparameters(
    trial: Trial, detectors: Mapping[str, Detector], chosen: Mapping[str, Any]
) -> pd.DataFrame:
    """Of every detector, tuned or not."""
    tuning = trial.sets.tuning
    rows = [
        (
            trial.model.name,
            trial.model.seed,
            name,
            key,
            str(value),
            tuning.name if tuning is not None and chosen.get(name) else "",
        )
        for name, detector in detectors.items()
        for key, value in detector.get_hyperparameters().items()
    ]
    columns = [*RUN, "detector", "hyperparameter", "value", "chosen_on"]
    return pd.DataFrame(rows, columns=columns)


def _summary(trial: Trial) -> tuple[dict[str, Any], pd.DataFrame]:
    """Accuracy and calibration error on the whole ID test set, the latter at the model's
    temperature, if it has one, beside what its training has measured; and of each class."""
    model, outputs = trial.model, trial.outputs(trial.sets.all_known)
    logits, labels, calibration = outputs.logits, outputs.labels, trial.model.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    path = trial.folder / "summary.json"
    summary: dict[str, Any] = read_json(path) if path.is_file() else {}
    summary["test_accuracy"] = float((logits.argmax(dim=1) == labels).float().mean())
    summary["test_ECE"] = expected_calibration_error(logits / temperature, labels)
    alarms, scores = None, model.own_scores(outputs)
    if calibration is not None and scores is not None:
        alarms = calibration.rejects(scores)
        summary["test_false_alarm_rate"] = float(alarms.float().mean())
    table = rates_of_classes(logits.argmax(dim=1), labels, alarms, model.class_names)
    summary["classes"] = summed_up(table)
    write_json(path, summary)
    table.insert(0, "loss", model.name)
    table.insert(1, "seed", model.seed)
    return summary, table


def _tuning(trial: Trial, scores: Scores) -> pd.DataFrame:
    columns = [*CELL, *COLUMNS]
    if trial.choosing is None:
        return pd.DataFrame(columns=[*columns, "AUROC low"])
    known, unknown = trial.choosing
    cells = _cells(trial, scores, known, [unknown])
    table = pd.DataFrame([where | metrics for where, metrics, _ in cells], columns=columns)
    table["AUROC low"] = table["detector"].map(_lows(scores, known, unknown))
    return table


def _lows(scores: Scores, known: Images, unknown: Images) -> dict[str, float]:
    """The low end of the interval of the AUROC of each detector that has scores."""
    generator = np.random.default_rng(0)
    id_drawn, ood_drawn = (draw(len(images), generator) for images in (known, unknown))
    (id_scores, _), (ood_scores, _) = scores.of(known), scores.of(unknown)
    return {
        name: bootstrap([(id_scores[name], ood_scores[name])], id_drawn, ood_drawn)["AUROC"][0]
        for name in id_scores.keys() & ood_scores.keys()
    }


def _cells(
    trial: Trial, scores: Scores, known: Images, unknown: Sequence[Images]
) -> Iterator[tuple[dict[str, Any], dict[str, float], str]]:
    """Cell of the table, metrics, and why there are none."""
    model, id_scores, id_failed = trial.model, *scores.of(known)
    id_digest = digest(known)
    for images in unknown:
        ood_scores, ood_failed = scores.of(images)
        failed, ood_digest = ood_failed | id_failed, digest(images)
        for name, depends_on in scores.detectors.items():
            where = {"loss": model.name, "seed": model.seed, "detector": name, "ood": images.name}
            reason = failed.get(name) or one_score(id_scores[name], ood_scores[name])
            if reason:
                yield where, dict.fromkeys(COLUMNS, float("nan")), reason
                continue
            compute = partial(
                ood_metrics, torch.from_numpy(id_scores[name]), torch.from_numpy(ood_scores[name])
            )
            about = {"metrics": depends_on, "images": [id_digest, ood_digest]}
            yield where, trial.cache.kept(about, compute), ""
