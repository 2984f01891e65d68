"""Models x detectors x OOD sets x seeds, on the same images; one tidy table."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_ood.benchmark import Benchmark

from isomax_evaluation.comparison.deploying import (
    best_seed,
    choose,
    decline,
    deploy,
    deployable,
    options_of_calibrate,
)
from isomax_evaluation.comparison.finishing import Comparison, tables_of, write_all
from isomax_evaluation.comparison.given import given_models
from isomax_evaluation.comparison.naming import named
from isomax_evaluation.comparison.opening import (
    open_models,
    ready_with_each,
    refuse_what_no_file_holds,
    row_of,
)
from isomax_evaluation.comparison.plan import Plan, claim, grown
from isomax_evaluation.comparison.runs import (
    Run,
    divide,
    ready_model,
    runs_of,
    write_splits,
)
from isomax_evaluation.comparison.sets import open_sets, prepared
from isomax_evaluation.comparison.tables import together
from isomax_evaluation.data.copies import table_of_copies
from isomax_evaluation.data.digests import describe
from isomax_evaluation.data.images import limit_per_class
from isomax_evaluation.data.loading import decoding_errors
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.data.splitting import Split
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.testing import Bench, Tested, test_model
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import as_list
from isomax_evaluation.output.folders import check_outside
from isomax_evaluation.output.progress import LINES, Progress, tell, warn
from isomax_evaluation.output.provenance import write_provenance
from isomax_evaluation.output.settings import check_settings
from isomax_evaluation.training.card import write_card
from isomax_evaluation.training.jobs import Job, accelerator_for, fetch_weights
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

    Run again with the same arguments, it goes on where it was interrupted: finished epochs, kept
    outputs of the models and finished scores are not computed again. Run with more detectors, OOD
    sets, losses, models or seeds, it adds what is missing to what is there.

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
    :raises InputError: if anything given cannot be used, before any work
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    given = given_models(models)
    digits = isinstance(id, str) and id == "digits" and not benchmark
    if losses is None:
        losses = () if given else DIGITS_LOSSES if digits else LOSSES
    losses = as_list(losses)
    if preprocessing.image_size is None and digits:
        preprocessing = replace(preprocessing, image_size=32)
    loss = losses[0] if losses else ""
    job = Job(source_of(model), loss, recipe, preprocessing, 0, alpha, reading.workers)
    plan = Plan(job, losses, seeds, given, as_list(detectors), named(ood, "ood"))
    check_settings(reading)
    plan.check(ood_is_given=benchmark is None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare runs in one process; start it without torchrun or accelerate")
    output = Path(os.path.expanduser(output))
    check_outside(output, id, tune, *(source for _, source in plan.ood))
    plan = grown(plan, output)
    wanted = None if export is None else row_of(export, plan)
    with (
        decoding_errors(),
        accelerator_for(plan.job.recipe) as accelerator,
    ):
        if plan.losses and plan.seeds > seeds:
            tell(progress, f"{output} has {plan.seeds} seeds, and keeps them")
        sets = open_sets(id, plan.ood, benchmark, tune, reading)
        plan = replace(plan, job=with_grey_range(plan.job, sets.train, progress))
        opened = open_models(
            plan, sets, accelerator.device, progress, class_names, reading.class_map is not None
        )
        if wanted is not None:
            refuse_what_no_file_holds(wanted, plan, opened, len(sets.train.class_names))
        if plan.losses:
            fetch_weights(plan.job, output)
            limited = replace(sets, train=limit_per_class(sets.train, images_per_class))
            for doubt in ready_with_each(plan, limited, output, accelerator, progress):
                warn(progress, doubt)
        decodings = [*([plan.job.decoding] if plan.losses else []), *(m.decoding for m in opened)]
        sets = prepared(
            sets, images_per_class, test_images, reading, table_of_copies(output),
            list(dict.fromkeys(decodings)), progress,
        )  # fmt: skip
        if plan.losses:
            # or refuse
            for note in divide(runs_of(output, plan, [])[0], sets, plan.job.alpha, False).notes:
                tell(progress, note)
        claim(output, plan, sets, opened, tune, fit_images)
        images = [("train", sets.train), ("test", sets.test)]
        images += [("ood", unknown) for unknown in sets.unknown]
        write_provenance(output, [describe(kind, part) for kind, part in images])
        if started is not None:
            started()
        runs = runs_of(output, plan, opened)
        tested = Tested(sets.known, sets.unknown, sets.test, sets.tuning)
        store = output / "outputs"

        def bench_of(run: Run) -> tuple[Bench, Split]:
            divided = divide(run, sets, plan.job.alpha, tune is not None)
            ready = ready_model(run, sets, divided, tested, store, accelerator, progress)
            training = limit_per_class(divided.training, fit_images)
            bench = Bench(
                ready,
                run.folder,
                store,
                training,
                divided.selection,
                tested,
                reading.workers,
                progress,
                measure_costs=costs and run.seed == 0,
            )
            return bench, divided

        overall = progress.begin("models", len(runs))
        by_name: dict[str, tuple[Run, Model]] = {}
        for run in runs:
            bench, divided = bench_of(run)
            write_splits(run, replace(divided, training=bench.training), tested)
            test_model(bench, plan.detectors)
            if run.job is not None:
                write_card(run.folder)
            by_name.setdefault(run.name, (run, bench.model))
            progress.step(overall, 1, None)
        task = progress.begin("exporting to ONNX, writing the report", None)
        done = tables_of(output, plan, runs, tested, progress)
        options = options_of_calibrate(plan.job.preprocessing.image_size, fit_images)
        table = deployable(by_name, plan.detectors, output, sets.given, options)
        done = replace(done, deployable=table)
        row = wanted or choose(
            done.results, done.intervals, together(runs, "tuning.csv"), table,
            tune and Path(tune).name,
        )  # fmt: skip
        if isinstance(row, str):
            chosen = decline(row, output)
        else:
            run = best_seed([run for run in runs if run.name == row[0]])
            bench, divided = bench_of(run)
            chosen = deploy(row, run, bench, divided, sets, plan.job.alpha, output, progress)
        done = replace(done, chosen=chosen)
        write_all(output, plan, runs, tested, done)
        progress.end(task)
        progress.end(overall)
    return done
