"""Scores, metrics and costs of one trained model, in its run folder."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import timm.data
import torch
from accelerate import Accelerator
from pytorch_ood.api import Detector
from pytorch_ood.metrics import OODMetrics
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_adapters.timm import load_model
from isomax_evaluation.data.datasets import Images, Transformed
from isomax_evaluation.detection.intervals import METRICS
from isomax_evaluation.detection.tuning import tune
from isomax_evaluation.extraction import one_pass as extraction
from isomax_evaluation.output.files import write_json, write_whole
from isomax_evaluation.output.progress import shown
from isomax_evaluation.output.tables import write_table
from isomax_evaluation.speed.timing import cost_of_detectors
from isomax_evaluation.training.jobs import Job, build_model, data_config
from isomax_evaluation.training.loop import images_workers

COLUMNS = (*METRICS, "AUTC")  # pytorch-ood's metrics, by its names
TUNING_IMAGES = 2000  # that detectors of images and feature maps are tuned on


@dataclass(frozen=True)
class Tested:
    """The images that every model of a comparison is tested on."""

    known: Images
    unknown: Sequence[Images]
    tuning: Images | None = None  #: OOD images for hyperparameters; none are tuned without


def test_model(
    job: Job,
    folder: Path,
    names: Sequence[str],
    train_images: Images,
    val_images: Images,
    tested: Tested,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Score all test images with all detectors; ``results.csv`` and ``errors.csv`` in the folder.

    Goes on where an interrupted call was: a dataset that has been scored is not scored again.

    :param job: what the model in the folder was trained for
    :param names: detectors
    :param train_images: ID images that detectors are fitted on
    :param val_images: ID images that hyperparameters are chosen by
    """
    if (folder / "results.csv").is_file():
        return
    (folder / "scores").mkdir(exist_ok=True)
    extraction.remove_scratch(folder)  # of a killed run
    model = load_model(folder / "model").to(accelerator.device)
    parts = Parts(model)
    detectors = detectors_for(parts, names)
    transform = timm.data.create_transform(**data_config(job, model))

    def loader_of(*sets: Images) -> DataLoader:
        return DataLoader(
            ConcatDataset([Transformed(images, transform) for images in sets]),
            batch_size=64,
            num_workers=max(images_workers(images, job) for images in sets),
        )

    todo = [images for images in (tested.known, *tested.unknown) if not _scored(folder, images)]
    costs_missing = job.seed == 0 and not (folder / "costs.csv").is_file()
    if todo or costs_missing:
        chosen_before = folder / "hyperparameters.json"
        if tested.tuning is not None and chosen_before.is_file():
            for name, values in json.loads(chosen_before.read_text()).items():
                detectors[name].set_hyperparameters(**values)
        elif tested.tuning is not None:
            with shown(progress, f"choosing hyperparameters, {job.loss}"):
                step = -(-len(train_images) // TUNING_IMAGES)
                few = train_images.take(np.arange(0, len(train_images), step))
                chosen = tune(
                    parts,
                    detectors,
                    loader_of(train_images),
                    loader_of(few),
                    loader_of(val_images, tested.tuning),
                )
            write_json(chosen_before, chosen)
        torch.manual_seed(job.seed)  # some detectors draw
        with shown(progress, f"fitting detectors, {job.loss}", len(train_images)) as advance:
            unfitted = extraction.fit(parts, detectors, loader_of(train_images), folder, advance)
        fitted = {name: d for name, d in detectors.items() if name not in unfitted}
        for images in todo:
            torch.manual_seed(job.seed)
            with shown(progress, f"scoring {images.name}, {job.loss}", len(images)) as advance:
                _, scores, failed = extraction.score(parts, fitted, loader_of(images), advance)
            _write_scores(folder, images, scores, unfitted | failed)
        if costs_missing:
            with shown(progress, f"measuring what a score costs, {job.loss}"):
                _write_costs(job, folder, parts, fitted, tested.known, transform)
    _write_results(job, folder, list(detectors), tested)


def read_scores(folder: Path, images: str) -> dict[str, np.ndarray]:
    """Scores of a dataset by detector, from a run folder."""
    with np.load(_scores_path(folder, images)) as arrays:
        return dict(arrays)


def ood_metrics(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """pytorch-ood's metrics of one ID and one OOD set of scores."""
    metrics = OODMetrics()
    metrics.update(id_scores, torch.zeros(len(id_scores), dtype=torch.long))
    metrics.update(ood_scores, torch.full((len(ood_scores),), -1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AUTC is undefined")  # an empty cell says so
        computed = metrics.compute()
    return {name: float(computed[name]) for name in COLUMNS}


def _scores_path(folder: Path, images: str) -> Path:
    name = quote(images, safe="")
    if len(name) > 200:  # file systems take 255 bytes
        name = f"{name[:100]}-{hashlib.sha256(images.encode()).hexdigest()[:16]}"
    return folder / "scores" / f"{name}.npz"


def _scored(folder: Path, images: Images) -> bool:
    return _scores_path(folder, images.name).is_file()


def _write_scores(
    folder: Path, images: Images, scores: dict[str, Tensor], failed: dict[str, str]
) -> None:
    path = _scores_path(folder, images.name)
    arrays = {name: values.numpy() for name, values in scores.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_json(path.with_suffix(".json"), {"failed": failed})
    write_whole(path, write)  # the last one: it says that the dataset is done


def _write_results(job: Job, folder: Path, names: Sequence[str], tested: Tested) -> None:
    def read(images: Images) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        content = json.loads(_scores_path(folder, images.name).with_suffix(".json").read_text())
        return read_scores(folder, images.name), content["failed"]

    summary = json.loads((folder / "summary.json").read_text())
    id_scores, id_failed = read(tested.known)
    rows, errors = [], []
    for images in tested.unknown:
        ood_scores, ood_failed = read(images)
        failed = ood_failed | id_failed
        for name in names:
            where = {"loss": job.loss, "seed": job.seed, "detector": name, "ood": images.name}
            if name in failed:
                errors.append(where | {"error": failed[name]})
                found = dict.fromkeys(COLUMNS, float("nan"))
            else:
                found = ood_metrics(*(torch.from_numpy(s[name]) for s in (id_scores, ood_scores)))
            model = {"accuracy": summary["test_accuracy"], "ECE": summary["test_ECE"]}
            rows.append(where | model | found)
    cell = ["loss", "seed", "detector", "ood"]
    write_table(folder / "errors.csv", pd.DataFrame(errors, columns=[*cell, "error"]))
    columns = [*cell, "accuracy", "ECE", *COLUMNS]
    write_table(folder / "results.csv", pd.DataFrame(rows, columns=columns))


def _write_costs(
    job: Job,
    folder: Path,
    parts: Parts,
    detectors: dict[str, Detector],
    images: Images,
    transform: Any,
) -> None:
    batch = torch.stack([transform(images.image(i)) for i in range(min(32, len(images)))])
    batch = batch.to(parts.device)
    # its weights do not change what it costs
    baseline = build_model(replace(job, loss="softmax"), parts.model.num_classes, pretrained=False)
    baseline = baseline.to(parts.device).eval()
    costs = cost_of_detectors(baseline, parts, detectors, batch)
    costs.insert(0, "loss", job.loss)
    write_table(folder / "costs.csv", costs)
