"""Losses x detectors x OOD sets x seeds: the same backbone, batches and recipe; one tidy table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm.data
import torch
from accelerate import Accelerator
from pytorch_ood.api import Detector
from pytorch_ood.metrics import OODMetrics
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from isomax.calibration import expected_calibration_error
from isomax_adapters.onnx import export
from isomax_adapters.pytorch_ood import NAMES, Parts, detectors_for, why_not
from isomax_adapters.timm import load_calibration, load_model
from isomax_evaluation import data
from isomax_evaluation.data import Images, Transformed
from isomax_evaluation.errors import InputError
from isomax_evaluation.extraction import Outputs, extract, fit, needs_images, score
from isomax_evaluation.fitting import images_workers
from isomax_evaluation.jobs import Job, check_job, data_config, make_accelerator
from isomax_evaluation.outputs import claim_folder, run_folder, write_json, write_whole
from isomax_evaluation.progress import progress_bar
from isomax_evaluation.recipes import RECIPES, Recipe
from isomax_evaluation.report import write_report
from isomax_evaluation.speed import cost_of_detectors
from isomax_evaluation.training import claim_run, readable, train_model

DETECTORS = (
    "MaxSoftmax",
    "MaxLogit",
    "EnergyBased",
    "Entropy",
    "ODIN",
    "Mahalanobis",
    "EntropicScore",
)
METRICS = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` hands back; all of it is in the output folder too."""

    results: pd.DataFrame  #: one row per loss, seed, detector and OOD set
    costs: pd.DataFrame  #: one row per loss and detector
    left_out: pd.DataFrame  #: loss, detector and the reason
    output: Path
    onnx: Path  #: the exported model


@dataclass(frozen=True)
class _Run:
    """One loss and seed."""

    job: Job
    folder: Path


def compare(
    id: str = "digits",
    ood: Sequence[str] = ("digits-held-out", "uniform-noise"),
    losses: Sequence[str] = ("softmax", "isomax"),
    detectors: Sequence[str] = DETECTORS,
    model: str = "test_resnet",
    recipe: Recipe | str = "digits",
    seeds: int = 3,
    output: str | Path = "isomax-out",
    pretrained: bool = False,
    small_images: bool = False,
    image_size: int | None = None,
    root: str | None = None,
    images_per_class: int | None = None,
    test_images: int | None = None,
    alpha: float = 0.05,
    skip_bad_images: bool = False,
    workers: int = 2,
) -> Comparison:
    """Train a backbone once per loss and seed, score ID and OOD test images with every detector.

    Run again with the same arguments, it goes on where it was interrupted: finished epochs and
    finished scores are not computed again.

    :param id: in-distribution dataset, a name or folder (see :mod:`isomax_evaluation.data`)
    :param ood: OOD datasets, names or folders; their test split if they have one
    :param losses: ``softmax``, ``isomax``, ``isomax+``, ``dismax``, ``dismax+fpr``
    :param detectors: names that ``isomax_adapters.pytorch_ood.detectors_for`` knows
    :param model: a timm architecture
    :param recipe: a recipe or the name of one
    :param seeds: number of seeds, 0 to ``seeds - 1``
    :param output: folder for tables, report, model folders and the ONNX file
    :param pretrained: start from timm's pretrained weights
    :param small_images: a 3x3 stride-1 stem without pooling, and 32x32 inputs
    :param image_size: input height and width, if not the model's own
    :param root: folder that named datasets are read from
    :param images_per_class: use at most so many training images of each class
    :param test_images: use at most so many test images of each dataset
    :param alpha: false-alarm rate of the rejection threshold
    :param skip_bad_images: leave out images that do not decode
    :param workers: processes that decode images
    :raises InputError: if anything given cannot be used, before any training
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    image_size = image_size or (32 if id == "digits" else None)
    job = Job(model, losses[0] if losses else "", recipe, 0, pretrained, small_images, image_size,
              alpha, workers)  # fmt: skip
    _check(job, losses, detectors, ood, seeds)
    output = Path(output)
    with progress_bar() as progress:
        id_train, id_test, ood_sets = _open(
            id, ood, root, images_per_class, test_images, skip_bad_images, workers, progress
        )
        settings = {
            "id": id,
            "ood": list(ood),
            "losses": list(losses),
            "detectors": list(detectors),
            "seeds": seeds,
            "images": {s.name: len(s) for s in (id_train, *ood_sets)} | {"id test": len(id_test)},
            "class_names": list(id_train.class_names),
            **asdict(job),
        }
        for varying in ("loss", "seed", "workers"):
            settings.pop(varying)
        claim_folder(output, settings)
        accelerator = make_accelerator(recipe)
        runs = [
            _Run(
                replace(job, loss=loss, seed=seed),
                run_folder(output, loss, seed),
            )
            for seed in range(seeds)
            for loss in losses
        ]
        overall = progress.add_task("training and scoring", total=len(runs))
        for run in runs:
            train_images, val_images = data.stratified_split(id_train, 0.15, run.job.seed)
            claim_run(run.job, id, train_images, val_images, run.folder)
            train_model(
                run.job, train_images, val_images, id_test, run.folder, accelerator, progress
            )
            _score_run(run, detectors, train_images, id_test, ood_sets, accelerator, progress)
            progress.advance(overall)
        costs = _costs(output, runs, detectors, id_test, progress)
        task = progress.add_task("exporting to ONNX, writing the report", total=None)
        done = _finish(output, runs, losses, detectors, costs, id_test, ood_sets)
        progress.remove_task(task)
    return done


def _finish(
    output: Path,
    runs: Sequence[_Run],
    losses: Sequence[str],
    detectors: Sequence[str],
    costs: pd.DataFrame,
    id_test: Images,
    ood_sets: Sequence[Images],
) -> Comparison:
    """Everything that is made of the results of all runs."""
    results = pd.concat([pd.read_csv(run.folder / "results.csv") for run in runs])
    write_whole(output / "results.csv", lambda path: results.to_csv(path, index=False))
    reasons = [
        {"loss": run.job.loss, "detector": name, "reason": reason}
        for run in runs[: len(losses)]
        for name, reason in why_not(load_model(run.folder / "model"), detectors).items()
    ]
    for run in runs:
        if (run.folder / "failed.json").is_file():
            found = json.loads((run.folder / "failed.json").read_text())
            reasons += [
                {
                    "loss": run.job.loss,
                    "detector": name,
                    "reason": f"failed, {run.folder.name}: {why}",
                }
                for name, why in found.items()
            ]
    left_out = pd.DataFrame(reasons, columns=["loss", "detector", "reason"])
    onnx = _export(output, runs)
    write_report(output, results, costs, left_out, id_test, ood_sets, runs[0].job.model)
    return Comparison(results, costs, left_out, output, onnx)


def _check(
    job: Job, losses: Sequence[str], detectors: Sequence[str], ood: Sequence[str], seeds: int
) -> None:
    for name, given in (("losses", losses), ("detectors", detectors), ("OOD sets", ood)):
        if not given:
            raise InputError(f"no {name} given; name at least one")
        if len(set(given)) < len(given):
            raise InputError(f"a name occurs twice among the {name}: {', '.join(given)}")
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; expected at least 1")
    for loss in losses:
        check_job(replace(job, loss=loss))
    if unknown := [name for name in detectors if name not in NAMES]:
        raise InputError(f"unknown detector {', '.join(unknown)}; choose from {', '.join(NAMES)}")


def _open(
    id: str,
    ood: Sequence[str],
    root: str | None,
    images_per_class: int | None,
    test_images: int | None,
    skip: bool,
    workers: int,
    progress: Progress,
) -> tuple[Images, Images, list[Images]]:
    id_train, id_test = data.open_splits(id, root)
    id_train = data.limit_per_class(id_train, images_per_class)
    sets = [data.open_images(name, "test", root) for name in ood]
    for images in sets:
        if shared := sorted(set(images.class_names) & set(id_train.class_names)):
            progress.console.print(
                f"[bold]warning[/bold]: {len(shared)} classes of the OOD set {images.name} also "
                f"occur in {id}: {', '.join(shared[:10])}"
            )
    limited = [_at_most(images, test_images) for images in (id_test, *sets)]
    id_train, id_test, *sets = (
        readable(images, skip, workers, progress) for images in (id_train, *limited)
    )
    names = [images.name for images in sets]
    if len(set(names)) < len(names):
        raise InputError(f"two OOD sets have the same name: {', '.join(names)}; rename a folder")
    return id_train, id_test, [images.as_ood() for images in sets]


def _at_most(images: Images, limit: int | None) -> Images:
    if limit is None or len(images) <= limit:
        return images
    return images.take(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))


def _score_run(
    run: _Run,
    names: Sequence[str],
    train_images: Images,
    id_test: Images,
    ood_sets: Sequence[Images],
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Scores and metrics of one trained model, into its folder; nothing to do if they are there."""
    if (run.folder / "results.csv").is_file():
        return
    model = load_model(run.folder / "model").to(accelerator.device)
    parts, detectors = Parts(model), detectors_for(model, names)
    transform = timm.data.create_transform(**data_config(run.job, model))

    def outputs_of(images: Images, on_images: dict[str, Detector]) -> Outputs:
        loader = DataLoader(
            Transformed(images, transform),
            batch_size=64,
            num_workers=images_workers(images, run.job),
        )
        task = progress.add_task(f"scoring {images.name}", total=len(images))
        outputs = extract(parts, loader, on_images, lambda done: progress.advance(task, done))
        progress.remove_task(task)
        return outputs

    if any(detector.requires_fit for detector in detectors.values()):
        failed = _fit_all(detectors, outputs_of(train_images, {}))
        write_json(run.folder / "failed.json", failed)
    on_images = {name: d for name, d in detectors.items() if needs_images(d)}
    outputs = {images.name: outputs_of(images, on_images) for images in ood_sets}
    outputs["id"] = outputs_of(id_test, on_images)
    scores = {
        name: {
            dataset: out.scores[name] if name in out.scores else score(detector, out)
            for dataset, out in outputs.items()
        }
        for name, detector in detectors.items()
    }
    identity = outputs["id"]
    calibration = load_calibration(run.folder / "model")
    assert calibration is not None
    common = {
        "loss": run.job.loss,
        "seed": run.job.seed,
        "accuracy": float((identity.logits.argmax(1) == identity.labels).float().mean()),
        "ECE": expected_calibration_error(
            identity.logits / calibration.temperature, identity.labels
        ),
    }
    rows = [
        common
        | {"detector": name, "ood": images.name}
        | ood_metrics(by_dataset["id"], by_dataset[images.name])
        for name, by_dataset in scores.items()
        for images in ood_sets
    ]
    arrays = {
        f"{name}|{dataset}": values.numpy()
        for name, by_dataset in scores.items()
        for dataset, values in by_dataset.items()
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_whole(run.folder / "scores.npz", write)
    write_whole(
        run.folder / "results.csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False)
    )


def _fit_all(detectors: dict[str, Detector], training: Outputs) -> dict[str, str]:
    """Fit the detectors; take out those that cannot be fitted, and return why."""
    failed = {}
    for name, detector in list(detectors.items()):
        try:
            fit(detector, training)
        except (AssertionError, RuntimeError, ValueError) as error:
            failed[name] = f"{type(error).__name__}: {error}".rstrip(": ")
            del detectors[name]
    return failed


def ood_metrics(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """pytorch-ood's metrics of one ID and one OOD set of scores."""
    metrics = OODMetrics()
    metrics.update(id_scores, torch.zeros(len(id_scores), dtype=torch.long))
    metrics.update(ood_scores, torch.full((len(ood_scores),), -1))
    computed = metrics.compute()
    return {name: float(computed[name]) for name in METRICS}


def _costs(
    output: Path, runs: Sequence[_Run], names: Sequence[str], images: Images, progress: Progress
) -> pd.DataFrame:
    """What scoring costs with the first seed's models, measured side by side on the CPU."""
    path = output / "costs.csv"
    if path.is_file():
        return pd.read_csv(path)
    task = progress.add_task("measuring what a score costs", total=None)
    first = {run.job.loss: run for run in runs if run.job.seed == 0}
    models = {loss: load_model(run.folder / "model") for loss, run in first.items()}
    baseline = models.get("softmax") or next(iter(models.values()))
    example = next(iter(first.values()))
    transform = timm.data.create_transform(**data_config(example.job, baseline))
    batch = torch.stack(
        [transform(images.image(position)) for position in range(min(32, len(images)))]
    )
    detectors: dict[str, tuple[Parts, Detector]] = {}
    for loss, model in models.items():
        parts = Parts(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            logits, features = parts.logits_and_features(batch)
        # what a detector is fitted on does not change what it costs: noise around the features
        many = features.repeat(20, 1)
        many += 0.1 * torch.randn(many.shape, generator=generator)
        labels = torch.arange(len(many)) % logits.shape[1]
        training = Outputs(logits.repeat(20, 1), many, labels, {})
        built = detectors_for(model, names)
        _fit_all(built, training)  # one that cannot be fitted has no costs
        detectors |= {f"{loss}|{name}": (parts, detector) for name, detector in built.items()}
    costs = cost_of_detectors(baseline, detectors, batch)
    costs[["loss", "detector"]] = costs.pop("name").str.split("|", expand=True)
    write_whole(path, lambda partial: costs.to_csv(partial, index=False))
    progress.remove_task(task)
    return costs


def _export(output: Path, runs: Sequence[_Run]) -> Path:
    """The first IsoMax-like model as ONNX; the softmax model if there is no other."""
    path = output / "model.onnx"
    ranked = sorted(runs, key=lambda run: (run.job.loss == "softmax", run.job.seed))
    if not path.is_file():
        export(ranked[0].folder / "model", path)
        write_json(output / "model.json", {"exported": ranked[0].folder.name})
    return path
