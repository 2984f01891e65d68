"""Losses x detectors x OOD sets x seeds: the same backbone, batches and recipe; one tidy table."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pytorch_ood.benchmark import Benchmark
from rich.progress import Progress

from isomax_adapters.onnx import export
from isomax_adapters.pytorch_ood import NAMES, why_not
from isomax_adapters.timm import load_model
from isomax_evaluation.comparison.report import write_report
from isomax_evaluation.data import datasets as data
from isomax_evaluation.data.benchmarks import open_benchmark
from isomax_evaluation.data.datasets import Images
from isomax_evaluation.data.provenance import write_provenance
from isomax_evaluation.detection.intervals import METRICS, bootstrap, draw
from isomax_evaluation.detection.testing import Tested, read_scores, test_model
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import claim_folder, run_folder, write_json
from isomax_evaluation.output.progress import progress_bar
from isomax_evaluation.output.tables import read_table, write_table
from isomax_evaluation.training.jobs import (
    Job,
    accelerator_for,
    build_model,
    check_job,
    fetch_weights,
)
from isomax_evaluation.training.recipes import RECIPES, Recipe
from isomax_evaluation.training.train import claim_run, readable, train_model

DETECTORS = (
    "MaxSoftmax",
    "MaxLogit",
    "EnergyBased",
    "Entropy",
    "ODIN",
    "Mahalanobis",
    "EntropicScore",
)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` hands back; all of it is in the output folder too."""

    results: pd.DataFrame  #: one row per loss, seed, detector and OOD set
    intervals: pd.DataFrame  #: 95% bootstrap intervals: a row per loss, detector and OOD set
    costs: pd.DataFrame  #: one row per loss and detector
    left_out: pd.DataFrame  #: loss, detector and why it cannot work on the model
    errors: pd.DataFrame  #: cells without a value: loss, seed, detector, OOD set and the error
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
    benchmark: Benchmark | str | None = None,
    tune: str | None = None,
    started: Callable[[], object] | None = None,
) -> Comparison:
    """Train a backbone once per loss and seed, score ID and OOD test images with every detector.

    Run again with the same arguments, it goes on where it was interrupted: finished epochs and
    finished scores are not computed again.

    :param id: in-distribution dataset, a name or folder (see :mod:`~isomax_evaluation.data`)
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
    :param test_images: score at most so many test images of each dataset; accuracy and
        calibration error are those of all of the ID dataset's
    :param alpha: false-alarm rate of the rejection threshold
    :param skip_bad_images: leave out images that do not decode
    :param workers: processes that decode images
    :param benchmark: one of pytorch-ood's benchmarks, or its name; brings ID and OOD sets, so that
        ``id`` and ``ood`` are not looked at
    :param tune: OOD dataset by which pytorch-ood's grid search chooses the detectors'
        hyperparameters, together with held-out training images; none are tuned without
    :param started: called when all that was given has turned out to be of use, before training
    :raises InputError: if anything given cannot be used, before any training
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    if image_size is None and id == "digits" and not benchmark:
        image_size = 32
    job = Job(model, losses[0] if losses else "", recipe, 0, pretrained, small_images, image_size,
              alpha, workers)  # fmt: skip
    _check(job, losses, detectors, None if benchmark else ood, seeds)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare runs in one process; start it without torchrun or accelerate")
    output = Path(output)
    with accelerator_for(recipe) as accelerator, progress_bar() as progress:
        opened = open_benchmark(benchmark, root) if benchmark else _open(id, ood, root)
        _check_detectors(job, losses, detectors, len(opened[0].class_names))
        sets = [images.name for images in opened[2]] if benchmark else [id, *ood]
        tuning = _open_tuning(tune, [opened[0].name, *sets], root)
        limits = (images_per_class, test_images, skip_bad_images, workers)
        id_train, id_test, tested = _prepare(opened, tuning, *limits, progress)
        name = id_train.name if benchmark else id
        settings = {
            "id": name,
            "ood": [images.name for images in tested.unknown] if benchmark else list(ood),
            "losses": list(losses),
            "detectors": list(detectors),
            "seeds": seeds,
            "images": {s.name: len(s) for s in (id_train, *tested.unknown)}
            | {"id test": len(id_test), "id scored": len(tested.known)},
            "class_names": list(id_train.class_names),
            **({"tune": tune} if tune else {}),
            **asdict(job),
        }
        for varying in ("loss", "seed", "workers"):
            settings.pop(varying)
        fetch_weights(job, output)
        claim_folder(output, settings)
        known = [("train", id_train), ("test", id_test)]
        write_provenance(output, known + [("ood", images) for images in tested.unknown])
        if started is not None:
            started()
        runs = [
            _Run(replace(job, loss=loss, seed=seed), run_folder(output, loss, seed))
            for seed in range(seeds)
            for loss in losses
        ]
        overall = progress.add_task("training and scoring", total=len(runs))
        for run in runs:
            train_images, val_images = data.stratified_split(id_train, 0.15, run.job.seed)
            claim_run(run.job, name, train_images, val_images, run.folder)
            train_model(
                run.job, train_images, val_images, id_test, run.folder, accelerator, progress
            )
            test_model(
                run.job, run.folder, detectors, train_images, val_images, tested, accelerator,
                progress,
            )  # fmt: skip
            progress.advance(overall)
        task = progress.add_task("exporting to ONNX, writing the report", total=None)
        done = _finish(output, runs, detectors, tested)
        progress.remove_task(task)
    return done


def _finish(
    output: Path, runs: Sequence[_Run], detectors: Sequence[str], tested: Tested
) -> Comparison:
    """Everything that is made of the results of all runs."""
    first = [run for run in runs if run.job.seed == 0]
    results, errors = (_together(runs, name) for name in ("results.csv", "errors.csv"))
    costs = _together(first, "costs.csv")
    intervals = _intervals(runs, results, tested)
    left_out = pd.DataFrame(
        [
            {"loss": run.job.loss, "detector": name, "reason": reason}
            for run in first
            for name, reason in why_not(load_model(run.folder / "model"), detectors).items()
        ],
        columns=["loss", "detector", "reason"],
    )
    for name, table in (
        ("results", results),
        ("intervals", intervals),
        ("costs", costs),
        ("errors", errors),
        ("left_out", left_out),
    ):
        write_table(output / f"{name}.csv", table)
    done = Comparison(results, intervals, costs, left_out, errors, output, _export(output, runs))
    write_report(
        output, results, intervals, costs, left_out, errors, tested.known, tested.unknown,
        runs[0].job.model, tested.tuning.name if tested.tuning else None, _tuned(runs),
    )  # fmt: skip
    return done


def _together(runs: Sequence[_Run], name: str) -> pd.DataFrame:
    tables = [read_table(run.folder / name) for run in runs]
    # tables without rows have columns without types
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _tuned(runs: Sequence[_Run]) -> list[dict[str, object]]:
    """The hyperparameters that were chosen: of each detector, by the runs that agree on them."""
    by_choice: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        path = run.folder / "hyperparameters.json"
        chosen = json.loads(path.read_text()) if path.is_file() else {}
        for name, values in chosen.items():
            listed = ", ".join(f"{key} = {value}" for key, value in values.items())
            by_choice.setdefault((name, listed), []).append(f"{run.job.loss} {run.job.seed}")
    return [
        {"detector": name, "values": values, "runs": ", ".join(where)}
        for (name, values), where in sorted(by_choice.items())
    ]


def _intervals(runs: Sequence[_Run], results: pd.DataFrame, tested: Tested) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    id_drawn = draw(len(tested.known), generator)
    rows = []
    for images in tested.unknown:
        ood_drawn = draw(len(images), generator)
        for loss in results["loss"].unique():
            scores = [
                (read_scores(run.folder, tested.known.name), read_scores(run.folder, images.name))
                for run in runs
                if run.job.loss == loss
            ]
            for detector in results[results["loss"] == loss]["detector"].unique():
                there = [
                    (known[detector], unknown[detector])
                    for known, unknown in scores
                    if detector in known and detector in unknown
                ]
                if not there:
                    continue
                row: dict[str, object] = {"loss": loss, "detector": detector, "ood": images.name}
                for metric, (low, high) in bootstrap(there, id_drawn, ood_drawn).items():
                    row |= {f"{metric} low": low, f"{metric} high": high}
                rows.append(row)
    bounds = [f"{metric} {end}" for metric in METRICS for end in ("low", "high")]
    return pd.DataFrame(rows, columns=["loss", "detector", "ood", *bounds])


def _check(
    job: Job,
    losses: Sequence[str],
    detectors: Sequence[str],
    ood: Sequence[str] | None,
    seeds: int,
) -> None:
    for name, given in (("losses", losses), ("detectors", detectors), ("OOD sets", ood)):
        if given is None:
            continue  # a benchmark brings them
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


def _check_detectors(
    job: Job, losses: Sequence[str], detectors: Sequence[str], classes: int
) -> None:
    reasons: dict[str, str] = {}
    for loss in losses:
        model = build_model(replace(job, loss=loss), classes, pretrained=False).eval()
        reasons = why_not(model, detectors)
        if len(reasons) < len(detectors):
            return
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise InputError(f"no detector can work with {', '.join(losses)}: {listed}; add one that can")


def _open(id: str, ood: Sequence[str], root: str | None) -> tuple[Images, Images, list[Images]]:
    return *data.open_splits(id, root), [data.open_images(name, "test", root) for name in ood]


def _open_tuning(tune: str | None, tested: Sequence[str], root: str | None) -> Images | None:
    if tune is None:
        return None
    if _identity(tune) in map(_identity, tested):
        raise InputError(
            f"{tune} is tested on; choose another dataset to tune on, or the table flatters"
        )
    return data.open_images(tune, "train", root)


def _identity(name: str) -> str:
    """What two ways to name one dataset have in common."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name.rpartition("/")[2].lower()


def _prepare(
    opened: tuple[Images, Images, list[Images]],
    tuning: Images | None,
    images_per_class: int | None,
    test_images: int | None,
    skip: bool,
    workers: int,
    progress: Progress,
) -> tuple[Images, Images, Tested]:
    id_train, id_test, ood_sets = opened
    names = [images.name for images in ood_sets]
    if len({id_test.name, *names}) <= len(names):
        raise InputError(
            f"two test sets have one name: {', '.join([id_test.name, *names])}; rename a folder"
        )
    for images in ood_sets:
        if shared := sorted(set(images.class_names) & set(id_train.class_names)):
            progress.console.print(
                f"[bold]warning[/bold]: {len(shared)} classes of the OOD set {images.name} also "
                f"occur in {id_train.name}: {', '.join(shared[:10])}"
            )
    id_train = data.limit_per_class(id_train, images_per_class)
    ood_sets = [data.at_most(images, test_images) for images in ood_sets]
    id_train, id_test, *ood_sets = (
        readable(images, skip, workers, progress) for images in (id_train, id_test, *ood_sets)
    )
    if tuning is not None:
        tuning = readable(
            data.at_most(tuning, test_images or 1000), skip, workers, progress
        ).as_ood()
    scored = Tested(
        data.at_most(id_test, test_images), [images.as_ood() for images in ood_sets], tuning
    )
    return id_train, id_test, scored


def _export(output: Path, runs: Sequence[_Run]) -> Path:
    """The first IsoMax-like model as ONNX; the softmax model if there is no other."""
    path = output / "model.onnx"
    ranked = sorted(runs, key=lambda run: (run.job.loss == "softmax", run.job.seed))
    if not path.is_file():
        export(ranked[0].folder / "model", path)
        write_json(output / "model.json", {"exported": ranked[0].folder.name})
    return path
