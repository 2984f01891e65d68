"""One model under all detectors: scores, metrics and costs, in the folder of its run."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from isomax_evaluation.detection.intervals import bootstrap, draw
from isomax_evaluation.detection.large import sample_size
from isomax_evaluation.detection.metrics import COLUMNS, one_score, ood_metrics
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.predictions import write_predictions
from isomax_evaluation.detection.scores import add_scores, read_failed, read_scores
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.detection.tuning import tune
from isomax_evaluation.extraction.classes import rates_of_classes, summed_up
from isomax_evaluation.extraction.doubts import doubts_of
from isomax_evaluation.extraction.sharing import adopt
from isomax_evaluation.extraction.store import Outputs, OutputsOnDisk, keeper, together
from isomax_evaluation.output.files import read_json, write_json
from isomax_evaluation.output.progress import Progress, shown, warn
from isomax_evaluation.output.tables import read_table, write_table
from isomax_evaluation.speed.costs import cost_of_detectors

TUNING_IMAGES = 2000  # that detectors of images and feature maps are tuned on
COST_IMAGES = 8
# seconds that measuring costs may take: a share of what fitting and scoring took, and no less than
COST_SHARE, COST_LEAST = 0.09, 1.0
CELL = ["loss", "seed", "detector", "ood"]


@dataclass(frozen=True)
class Tested:
    """The images that every model of a comparison is tested on."""

    known: Images  #: of the ID set, those that are scored
    unknown: Sequence[Images]
    all_known: Images  #: the whole ID test set, which accuracy is measured on
    tuning: Images | None = None  #: OOD images for hyperparameters; none are tuned without


@dataclass(frozen=True)
class Bench:
    """One model, the images it is tried on, and where what comes out goes."""

    model: Model
    folder: Path  #: of the run
    store: Path  #: of the models' outputs, which are kept
    training: Images  #: ID images that detectors are fitted on
    validation: Images | None  #: ID images that hyperparameters are chosen by
    tested: Tested
    workers: int
    progress: Progress
    measure_costs: bool

    @property
    def choosing(self) -> list[Images]:
        """ID and OOD images that choose hyperparameters, and which detector is the best; none if
        nothing is tuned."""
        sets = {"validation": self.validation, "tuning": self.tested.tuning}
        named = [replace(s, name=f"{s.name} ({what})") for what, s in sets.items() if s is not None]
        return named if len(named) == len(sets) else []

    def keeper(self, images: Images) -> OutputsOnDisk:
        """Where the model's outputs on some images are kept."""
        model, preprocessing = self.model, self.model.preprocessing
        if preprocessing is not None:
            preprocessing = {**preprocessing, **model.decoding.options}
        kept = keeper(self.store, model.digests, preprocessing, digest(images), len(images))
        adopt(kept, model.parts)
        return kept

    def loader(self, *sets: Images) -> Any:
        """Their batches, as the model takes them."""
        decoded = [images.decoded(self.model.decoding) for images in sets]
        return loader_of(self.model.transform, self.workers, *decoded)

    def outputs(self, images: Images) -> Outputs:
        """The model's outputs on some images; computed if they are not kept."""
        keeper = self.keeper(images)
        kept = keeper.read()
        if kept is not None:
            return kept
        doing = f"running {self.model.name} on {images.name}"
        with shown(self.progress, doing, len(images)) as advance:
            return score(self.model.parts, {}, self.loader(images), advance, keeper)[0]


def test_model(bench: Bench, names: Sequence[str]) -> None:
    """Score all test images with all detectors; the tables of the run in its folder.

    What is there already stays: only detectors without scores are fitted, only sets without their
    scores are scored, and the model runs only over images whose outputs are not kept, unless a
    detector takes feature maps or images.

    :param names: detectors
    """
    folder, sets = bench.folder, [bench.tested.known, *bench.tested.unknown]
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    remove_scratch(folder)  # of a killed run
    detectors = detectors_for(bench.model.parts, names)
    scored = [*sets, *bench.choosing]
    missing = {images.name: _missing(folder, images, detectors) for images in scored}
    unpriced = _unpriced(folder, detectors) if bench.measure_costs else []
    wanted = {
        name: detector
        for name, detector in detectors.items()
        if name in unpriced or any(name in there for there in missing.values())
    }
    if wanted:
        torch.manual_seed(bench.model.seed)
        _score_missing(bench, wanted, missing, unpriced)
    if not (folder / "summary.json").is_file():
        _write_summary(bench)
    if wanted or _rows(folder) != {(n, images.name) for n in detectors for images in sets[1:]}:
        write_predictions(folder, bench.model, [(images, bench.outputs(images)) for images in sets])
        _write_results(bench, list(detectors))


def _missing(folder: Path, images: Images, names: Iterable[str]) -> list[str]:
    done = {*read_scores(folder, images.name), *read_failed(folder, images.name)}
    return [name for name in names if name not in done]


def _unpriced(folder: Path, names: Iterable[str]) -> list[str]:
    path = folder / "costs.csv"
    priced = set(read_table(path)["detector"]) if path.is_file() else set()
    return [name for name in names if name not in priced]


def _rows(folder: Path) -> set[tuple[str, str]]:
    """Detector and OOD set of each row that is there."""
    path = folder / "results.csv"
    if not path.is_file():
        return set()
    table = read_table(path)
    return set(zip(table["detector"], table["ood"], strict=True))


def _score_missing(
    bench: Bench,
    detectors: dict[str, Detector],
    missing: dict[str, list[str]],
    unpriced: list[str],
) -> None:
    model, folder, progress = bench.model, bench.folder, bench.progress
    started = time.perf_counter()
    chosen = _tuned(bench, detectors)
    for name, values in chosen.items():
        if name in detectors:
            detectors[name].set_hyperparameters(**values)
    with shown(progress, f"fitting detectors, {model.name}", len(bench.training)) as advance:
        unfitted = fit(
            model.parts,
            detectors,
            bench.loader(bench.training),
            folder,
            advance,
            bench.keeper(bench.training),
            model.seed,
        )
    _write_hyperparameters(bench, detectors, chosen)
    fitted = {name: d for name, d in detectors.items() if name not in unfitted}
    for doubt in filter(None, (doubt_of_fit(*item) for item in fitted.items())):
        warn(progress, f"{model.name}, {doubt}")
    for images in (bench.tested.known, *bench.tested.unknown, *bench.choosing):
        names, outputs = missing[images.name], bench.keeper(images)
        if not names and outputs.read() is not None:
            continue
        with shown(progress, f"scoring {images.name}, {model.name}", len(images)) as advance:
            _, scores, failed = score(
                model.parts,
                {name: fitted[name] for name in names if name in fitted},
                bench.loader(images),
                advance,
                outputs,
                model.seed,
            )
        if names:
            failed |= {name: unfitted[name] for name in names if name in unfitted}
            add_scores(folder, images, scores, failed)
    if unpriced:
        priced = {name: d for name, d in fitted.items() if name in unpriced}
        _write_costs(bench, priced, COST_SHARE * (time.perf_counter() - started))


def _tuned(bench: Bench, detectors: dict[str, Detector]) -> dict[str, dict[str, Any]]:
    """Hyperparameters that were chosen on the tuning set, if there is one; those that are missing
    are chosen now."""
    tuning, path = bench.tested.tuning, bench.folder / "hyperparameters.json"
    chosen: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    new = {n: d for n, d in detectors.items() if d.hyperparameter_space and n not in chosen}
    if tuning is None or bench.validation is None or not new:
        return chosen
    with shown(bench.progress, f"choosing hyperparameters, {bench.model.name}"):
        step = -(-len(bench.training) // TUNING_IMAGES)
        few = bench.training.take(np.arange(0, len(bench.training), step))
        known, unknown = bench.outputs(bench.validation), bench.outputs(tuning)
        chosen |= tune(
            bench.model.parts,
            new,
            bench.outputs(bench.training),
            together(known, unknown),
            bench.loader(few),
            bench.loader(bench.validation, tuning),
        )
    write_json(path, chosen)
    return chosen


def _write_hyperparameters(
    bench: Bench, detectors: dict[str, Detector], chosen: dict[str, dict[str, Any]]
) -> None:
    """Of every detector, tuned or not."""
    path, tuning = bench.folder / "hyperparameters.csv", bench.tested.tuning
    rows = [
        {
            "loss": bench.model.name,
            "seed": bench.model.seed,
            "detector": name,
            "hyperparameter": key,
            "value": str(value),
            "chosen_on": tuning.name if tuning is not None and name in chosen else "",
        }
        for name, detector in detectors.items()
        for key, value in detector.get_hyperparameters().items()
    ]
    columns = ["loss", "seed", "detector", "hyperparameter", "value", "chosen_on"]
    table = pd.DataFrame(rows, columns=columns)
    if path.is_file():
        before = read_table(path)
        kept = before[~before["detector"].isin(list(detectors))]
        table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
    write_table(path, table)


def _write_summary(bench: Bench) -> None:
    """What training writes of a model that it has trained: accuracy and calibration error on the
    whole ID test set, the latter at the model's temperature, if it has one; and of each class."""
    outputs, calibration = bench.outputs(bench.tested.all_known), bench.model.calibration
    logits, labels = outputs.logits, outputs.labels
    temperature = 1.0 if calibration is None else calibration.temperature
    summary: dict[str, Any] = {
        "test_accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
        "test_ECE": expected_calibration_error(logits / temperature, labels),
    }
    alarms, scores = None, bench.model.own_scores(outputs)
    if calibration is not None and scores is not None:
        alarms = calibration.rejects(scores)
        summary["test_false_alarm_rate"] = float(alarms.float().mean())
    table = rates_of_classes(logits.argmax(dim=1), labels, alarms, bench.model.class_names)
    summary["classes"] = summed_up(table)
    for doubt in doubts_of(bench.model.parts.model, calibration, logits, labels, scores=scores):
        warn(bench.progress, f"{bench.model.name}: {doubt}")
    write_table(bench.folder / "classes.csv", table)
    write_json(bench.folder / "summary.json", summary)


def _write_results(bench: Bench, names: Sequence[str]) -> None:
    folder = bench.folder
    summary = read_json(folder / "summary.json")
    accuracy = {"accuracy": summary["test_accuracy"], "ECE": summary["test_ECE"]}
    rows, errors = [], []
    for where, found, reason in _measured(bench, bench.tested.known, bench.tested.unknown, names):
        rows.append(where | accuracy | found)
        if reason:
            errors.append(where | {"error": reason})
    write_table(folder / "errors.csv", pd.DataFrame(errors, columns=[*CELL, "error"]))
    columns = [*CELL, "accuracy", "ECE", *COLUMNS]
    write_table(folder / "results.csv", pd.DataFrame(rows, columns=columns))
    if bench.choosing:
        known, unknown = bench.choosing
        lows = _lows(folder, known, unknown)
        cells = _measured(bench, known, [unknown], names)
        table = pd.DataFrame([where | found for where, found, _ in cells])[[*CELL, *COLUMNS]]
        table["AUROC low"] = table["detector"].map(lows)
        write_table(folder / "tuning.csv", table)


def _lows(folder: Path, known: Images, unknown: Images) -> dict[str, float]:
    """The low end of the interval of the AUROC of each detector that has scores."""
    generator = np.random.default_rng(0)
    drawn = [draw(len(images), generator) for images in (known, unknown)]
    scores = [read_scores(folder, images.name) for images in (known, unknown)]
    return {
        name: bootstrap([(scores[0][name], scores[1][name])], drawn[0], drawn[1])["AUROC"][0]
        for name in scores[0].keys() & scores[1].keys()
    }


def _measured(
    bench: Bench, known: Images, unknown: Sequence[Images], names: Sequence[str]
) -> Iterator[tuple[dict[str, Any], dict[str, float], str]]:
    """Cell, metrics, and why there are none."""
    model, folder = bench.model, bench.folder
    id_scores, id_failed = read_scores(folder, known.name), read_failed(folder, known.name)
    for images in unknown:
        ood_scores = read_scores(folder, images.name)
        failed = read_failed(folder, images.name) | id_failed
        for name in names:
            where = {"loss": model.name, "seed": model.seed, "detector": name, "ood": images.name}
            reason = failed.get(name) or one_score(id_scores[name], ood_scores[name])
            if reason:
                yield where, dict.fromkeys(COLUMNS, float("nan")), reason
                continue
            scores = (torch.from_numpy(s[name]) for s in (id_scores, ood_scores))
            yield where, ood_metrics(*scores), ""


def _write_costs(bench: Bench, detectors: dict[str, Detector], budget: float) -> None:
    model, path, known = bench.model, bench.folder / "costs.csv", bench.tested.known
    few = known.take(np.arange(min(COST_IMAGES, len(known)))).decoded(model.decoding)
    batch, _ = next(iter(loader_of(model.transform, 0, few)))
    doing = f"measuring what scores cost, {model.name}"
    with shown(bench.progress, doing, len(detectors)) as advance:
        costs = cost_of_detectors(
            model.softmax_twin(),
            model.parts,
            detectors,
            batch.to(model.parts.device),
            max(COST_LEAST, budget),
            lambda name: advance(1, f"measuring what {name} costs, {model.name}"),
        )
    costs.insert(0, "loss", model.name)
    training = bench.keeper(bench.training).read()
    costs["fit_images"] = [
        None
        if training is None or not row.fitted
        else sample_size(detectors[row.detector], training)
        for row in costs.itertuples()
    ]
    if path.is_file():
        costs = pd.concat([read_table(path), costs], ignore_index=True)
    write_table(path, costs)
