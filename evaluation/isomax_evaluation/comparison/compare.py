"""Models x detectors x OOD sets x seeds, on the same images; one tidy table."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pytorch_ood.benchmark import Benchmark

from isomax_evaluation.comparison.deploying import (
    Chosen,
    best_seed,
    choose,
    decline,
    deploy,
    deployable,
    export_calibrated,
    options_of_calibrate,
)
from isomax_evaluation.comparison.given import given_models, named
from isomax_evaluation.comparison.opening import (
    open_models,
    ready_with_each,
    refuse_what_no_file_holds,
    row_of,
)
from isomax_evaluation.comparison.plan import Plan
from isomax_evaluation.comparison.report.page import write_report
from isomax_evaluation.comparison.report.plots import scores_of
from isomax_evaluation.comparison.report.samples import write_samples
from isomax_evaluation.comparison.report.tables import (
    Comparison,
    searched,
    tables_of,
    together,
    write_tables,
)
from isomax_evaluation.comparison.runs import Run, RunResults, claim, results_of, runs_of, trial_of
from isomax_evaluation.comparison.sets import Sets, open_sets, prepared
from isomax_evaluation.data.copies import table_of_copies
from isomax_evaluation.data.images import limit_per_class
from isomax_evaluation.data.loading import decoding_errors
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import as_list
from isomax_evaluation.output.folders import check_outside
from isomax_evaluation.output.progress import LINES, Progress, shown
from isomax_evaluation.output.settings import check_settings
from isomax_evaluation.training.jobs import Job, accelerator_for
from isomax_evaluation.training.recipes import Recipe, recipe_named
from isomax_evaluation.training.source import Source, source_of
from isomax_evaluation.training.train import with_grey_range

DETECTORS = (
    "MaxSoftmax",
    "EnergyBased",
    "ODIN",
    "Mahalanobis",
    "EntropicScore",
    "MinimumDistanceScore",
    "MaxMeanLogitEntropyScore",
)
LOSSES = ("softmax", "isomax")  # that are trained if no models are given
DIGITS_LOSSES = ("softmax", "isomax", "isomax+", "dismax+fpr")  # and on the digits


def compare(
    id: Any = "digits",
    ood: Sequence[str] | Mapping[str, Any] = ("digits-held-out", "uniform-noise"),
    losses: Sequence[str] | None = None,
    detectors: Sequence[str] = DETECTORS,
    model: str | Source = "test_resnet",
    recipe: Recipe | str = "digits",
    preprocessing: Preprocessing = Preprocessing(),
    reading: Reading = Reading(),
    seeds: int = 3,
    output: str | Path = "isomax-out",
    images_per_class: int | None = None,
    test_images: int | None = None,
    alpha: float = 0.05,
    benchmark: Benchmark | str | None = None,
    tune: str | None = None,
    models: Mapping[str, Any] | Sequence[str] = (),
    fit_images: int | None = None,
    class_names: Sequence[str] | None = None,
    export: str | None = None,
    costs: bool = True,
    started: Callable[[], object] | None = None,
    progress: Progress = LINES,
) -> Comparison:
    """Score ID and OOD test images with every detector on every model: models that are given, and a
    backbone that is trained here once per loss and seed.

    The table is of what is asked for. What the output folder has of it already is not computed
    again: trained models, their outputs, and scores, costs and chosen hyperparameters, each kept
    under all that it depends on.

    :param id: in-distribution dataset: a name or folder (see :mod:`~isomax_evaluation.data`), or
        its training and test set as a pair of ``torch.utils.data.Dataset`` or ``DataLoader``, of
        PIL images, or of tensors that go into the models as they are
    :param ood: OOD datasets, names or folders (their test split if they have one), each as it is or
        as ``NAME=FOLDER``; or a dictionary of names with folders, data sets or loaders
    :param losses: ``softmax``, ``isomax``, ``isomax+``, ``dismax``, ``dismax+fpr``; by default
        ``softmax`` and ``isomax``, on the digits ``isomax+`` and ``dismax+fpr`` too, and none if
        models are given
    :param detectors: names that ``isomax_adapters.pytorch_ood.detectors_for`` knows
    :param model: a timm architecture to train, or one and where its weights come from
    :param recipe: a recipe or the name of one
    :param preprocessing: what pixels become; given models have their own channels and, if they were
        trained with one, their own grey range
    :param reading: how images are found and read
    :param seeds: number of seeds to train with, 0 to ``seeds - 1``
    :param output: folder for tables, report, model folders and the ONNX file
    :param images_per_class: use at most so many training images of each class
    :param test_images: score at most so many test images of each dataset; accuracy and
        calibration error are those of all of the ID dataset's
    :param alpha: false-alarm rate of the rejection threshold
    :param benchmark: one of pytorch-ood's benchmarks, or its name; brings ID and OOD sets, so that
        ``id`` and ``ood`` are not looked at
    :param tune: OOD dataset by which pytorch-ood's grid search chooses the detectors'
        hyperparameters, together with held-out training images; none are tuned without
    :param models: models that exist: texts ``NAME=SOURCE`` or ``SOURCE``, as
        :func:`isomax_adapters.timm.sources.open_model` takes a source; or a dictionary of names
        with a source, a model in memory (a timm model, or
        :class:`~isomax_adapters.pytorch_ood.Parts` of any network), or a list of these, which are
        its seeds. Nothing is trained for them
    :param fit_images: fit detectors on at most so many training images of each class
    :param class_names: of given models that have none, in the order of their logits; if not given,
        the ID images decide which of the usual orders it is
    :param export: the row that becomes ``chosen.onnx``, ``MODEL/DETECTOR`` or ``LOSS/DETECTOR``; by
        default the best one that can be a file: by AUROC on the tuning set if there is one, else on
        the test sets
    :param costs: measure what a score of each detector costs, on seed 0 of each model
    :param started: called when all that was given has turned out to be of use, before any work
    :param progress: where it reports to; lines on the error stream if not given
    :raises InputError: if anything given cannot be used, or the output folder has another training
        under the name of a loss, before any work
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    check_settings(reading)
    job = Job(source_of(model), "", recipe, preprocessing, 0, alpha, reading.workers)
    plan = _plan(id, ood, losses, detectors, job, seeds, benchmark, models)
    plan = replace(plan, tune=tune, fit_images=fit_images, measure_costs=costs)
    output = Path(os.path.expanduser(output))
    check_outside(output, id, tune, *(source for _, source in plan.ood))
    row = None if export is None else row_of(export, plan)
    with (
        decoding_errors(),
        accelerator_for(plan.job.recipe) as accelerator,
    ):
        sets = open_sets(id, plan.ood, benchmark, tune, reading)
        plan = replace(plan, job=with_grey_range(plan.job, sets.train, progress))
        opened = open_models(
            plan, sets, accelerator.device, progress, class_names, reading.class_map is not None
        )
        if row is not None:
            refuse_what_no_file_holds(row, plan, opened, len(sets.train.class_names))
        if plan.losses:
            limited = replace(sets, train=limit_per_class(sets.train, images_per_class))
            ready_with_each(plan, limited, output, accelerator, progress)
        decodings = [*([plan.job.decoding] if plan.losses else []), *(m.decoding for m in opened)]
        sets = prepared(
            sets, images_per_class, test_images, reading, table_of_copies(output),
            list(dict.fromkeys(decodings)), progress,
        )  # fmt: skip
        runs = runs_of(output, plan, opened)
        claim(output, plan, sets, runs, progress)
        if started is not None:
            started()
        tested = _test(runs, plan, sets, output, accelerator, progress)
        with shown(progress, "exporting to ONNX, writing the report"):
            done = tables_of(tested, sets.tests, output)
            done = replace(done, onnx=export_calibrated(tested, output, progress))
            chosen = _ship(row, done, tested, plan, sets, accelerator, progress)
            done = replace(done, chosen=chosen)
            _write(done, tested, plan, sets)
    return done


def _plan(
    id: Any,
    ood: Any,
    losses: Sequence[str] | None,
    detectors: Sequence[str],
    job: Job,
    seeds: int,
    benchmark: Benchmark | str | None,
    models: Mapping[str, Any] | Sequence[str],
) -> Plan:
    """What is asked for, with what is usual.

    :raises InputError: if it cannot work
    """
    given = given_models(models)
    digits = isinstance(id, str) and id == "digits" and not benchmark
    if losses is None:
        losses = () if given else DIGITS_LOSSES if digits else LOSSES
    losses = as_list(losses)
    if job.preprocessing.image_size is None and digits:
        job = replace(job, preprocessing=replace(job.preprocessing, image_size=32))
    job = replace(job, loss=losses[0] if losses else "")
    plan = Plan(job, losses, seeds, given, as_list(detectors), named(ood, "ood"))
    plan.check(ood_is_given=benchmark is None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare runs in one process; start it without torchrun or accelerate")
    return plan


def _test(
    runs: Sequence[Run],
    plan: Plan,
    sets: Sets,
    output: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> list[RunResults]:
    """Train each model, if it is not there, and try all detectors on it."""
    options = options_of_calibrate(plan.job.preprocessing.image_size, plan.fit_images)
    tested = []
    with shown(progress, f"{len(runs)} models", len(runs)) as advance:
        for run in runs:
            trial, _ = trial_of(run, plan, sets, output, accelerator, progress)
            rows = deployable(run, trial.model, plan.detectors, output, sets.given, options)
            tested.append(results_of(run, trial, plan, rows))
            advance(1)
    return tested


def _ship(
    row: tuple[str, str, str] | None,
    done: Comparison,
    tested: Sequence[RunResults],
    plan: Plan,
    sets: Sets,
    accelerator: Accelerator,
    progress: Progress,
) -> Chosen:
    """Make a file of the row that was asked for, or of the best one that can be."""
    tuning = together([one.tables.tuning for one in tested], ())
    tuned_on = plan.tune and Path(plan.tune).name
    found = row or choose(done.results, done.intervals, tuning, done.deployable, tuned_on)
    if isinstance(found, str):
        return decline(found, done.output)
    best = best_seed(tested, found[0])
    trial, divided = trial_of(best.run, plan, sets, done.output, accelerator, progress)
    return deploy(found, best, trial, divided, sets, plan.job.alpha, done.output)


def _write(done: Comparison, tested: Sequence[RunResults], plan: Plan, sets: Sets) -> None:
    write_samples(done.output, sets.tests)
    trained = plan.job.model if plan.losses else None
    write_report(done, scores_of(tested, sets.tests), sets.tests, trained, searched(tested))
    write_tables(done)
