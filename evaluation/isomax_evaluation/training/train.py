"""Train or fine-tune a timm model with any of the losses: resumable, on one process or several."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from isomax.calibration import (
    Calibration,
    expected_calibration_error,
)
from isomax_adapters.timm import save_model
from isomax_adapters.timm.attaching import head_modules
from isomax_adapters.timm.publishing import CARD
from isomax_evaluation import data
from isomax_evaluation.data.copies import settle, table_of_copies
from isomax_evaluation.data.digests import describe, digest
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.loading import decoding_errors
from isomax_evaluation.data.reading import readable
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.data.splitting import Split, split_training
from isomax_evaluation.extraction.classes import far_above, rates_of_classes, summed_up
from isomax_evaluation.extraction.doubts import doubt_of_samples, doubts_of
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.files import read_lines, write_json
from isomax_evaluation.output.folders import (
    check_folder,
    check_outside,
    claim_folder,
    read_settings,
    resolved,
)
from isomax_evaluation.output.guide import write_guide
from isomax_evaluation.output.progress import LINES, Progress, Silent, shown, tell, warn
from isomax_evaluation.output.provenance import write_provenance
from isomax_evaluation.output.settings import check_settings
from isomax_evaluation.output.tables import write_table
from isomax_evaluation.training import look
from isomax_evaluation.training.batches import eval_loader
from isomax_evaluation.training.best import Best
from isomax_evaluation.training.card import write_card
from isomax_evaluation.training.columns import FILES, OTHERS, TRACKED
from isomax_evaluation.training.dry_run import Tried, dry_run
from isomax_evaluation.training.head_first import head_first
from isomax_evaluation.training.jobs import (
    Job,
    accelerator_for,
    build_model,
    check_job,
    data_config,
    fetch_weights,
)
from isomax_evaluation.training.loop import accuracy, evaluate, fit
from isomax_evaluation.training.recipes import Recipe, recipe_named
from isomax_evaluation.training.source import Source, source_of


def train(
    dataset: str,
    output: str | Path,
    model: str | Source = "resnet18",
    loss: str = "isomax",
    recipe: Recipe | str = "finetune",
    preprocessing: Preprocessing = Preprocessing(),
    reading: Reading = Reading(),
    seed: int = 0,
    alpha: float = 0.05,
    images_per_class: int | None = None,
    val_share: float | None = None,
    auto_batch: bool = False,
    check: bool = False,
    started: Callable[[], object] | None = None,
    progress: Progress = LINES,
) -> Path:
    """Train a model and calibrate it on held-out training images; the test images are not touched
    until the end.

    Run again with the same arguments, it goes on from the last finished epoch.

    :param dataset: name or folder, see :mod:`isomax_evaluation.data`
    :param output: folder that gets ``model/`` (a model folder), ``metrics.jsonl`` and checkpoints
    :param model: a timm architecture, or one and where its weights come from
    :param loss: one of ``softmax``, ``isomax``, ``isomax+``, ``dismax``, ``dismax+fpr``
    :param recipe: a recipe or the name of one
    :param preprocessing: what pixels become
    :param reading: how images are found and read
    :param alpha: false-alarm rate that the rejection threshold is calibrated for
    :param images_per_class: use at most so many training images of each class
    :param val_share: share of the training images (or groups) held out for validation and
        calibration, if the data has no validation set beside a test set; if not given, a tenth, or
        so many that the threshold is not the largest of the calibration scores
    :param auto_batch: as many images per update as fit into memory, in the place of the recipe's
    :param check: say what would be trained, how fast and in how much memory, and write nothing
    :param started: called when all that was given has turned out to be of use, before training
    :param progress: where it reports to; lines on the error stream if not given
    :return: the model folder
    :raises InputError: if anything given cannot be used, before training starts
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    job = Job(source_of(model), loss, recipe, preprocessing, seed, alpha, reading.workers)
    check_settings(reading)
    check_job(job)
    if val_share is not None and not 0 < val_share < 1:
        raise InputError(f"the share of validation images is {val_share}; expected 0 to 1")
    output = Path(os.path.expanduser(output))
    check_outside(output, dataset)
    splits = data.open_splits(dataset, reading)
    with (
        decoding_errors(),
        accelerator_for(recipe) as accelerator,
    ):
        progress = progress if accelerator.is_main_process else Silent()
        if not job.source.starts_trained:
            tell(
                progress,
                f"{job.source.model} starts from random weights, which takes many images and "
                "epochs; to start from trained ones, give --pretrained or --weights FILE",
            )
        for line in splits.found:
            tell(progress, line)
        found = [data.limit_per_class(splits.train, images_per_class), splits.test]
        found += [] if splits.held_out is None else [splits.held_out]

        def divide(train: Images, test: Images, *held: Images) -> Split:
            return split_training(train, held[0] if held else None, alpha, val_share, seed)

        fetch_weights(job, output)
        if auto_batch:
            job = _as_large_as_fits(job, divide(*found).training, output, accelerator)
            tell(progress, f"{job.recipe.batch_size} images per update")
        tried = ready_to_train(job, divide(*found).training, output, accelerator, progress)
        job = with_grey_range(job, found[0], progress)
        read = _read(job, found, reading, splits.drawn, table_of_copies(output), progress)
        missing = data.check_counts(*read[:2])
        for doubt in (*missing, *(tried.doubts if tried else ()), *data.warnings_of(read[0])):
            warn(progress, doubt)
        divided = divide(*read)
        if sum(map(len, read)) < sum(map(len, found)):  # too few may be left
            ready_to_train(job, divided.training, output, accelerator, progress)
        for note in divided.notes:
            tell(progress, note)
        if tried:
            for line in look.lines_of(job, divided, read[1], tried, accelerator):
                tell(progress, line)
        if check:
            if few := doubt_of_samples(len(divided.calibration), job.alpha):
                warn(progress, few)
            for line in look.times(job, divided, read[1], accelerator):
                tell(progress, line)
            return output / "model"
        if accelerator.is_main_process:
            claim_run(job, dataset, divided, output, read[1])
            if started is not None:
                started()
        accelerator.wait_for_everyone()
        folder = train_model(job, divided, read[1], output, accelerator, progress)
        if accelerator.is_main_process:
            write_guide(output, "train", FILES, OTHERS | TRACKED)
        return folder


def with_grey_range(job: Job, images: Images, progress: Progress) -> Job:
    """The job, with the images' own range of grey values where it is to have that."""
    if job.preprocessing.grey_range != "auto":
        return job
    found = data.grey_range_of(images, job.workers, progress)
    tell(progress, "grey values lie in {} to {}".format(*found))
    return replace(job, preprocessing=replace(job.preprocessing, grey_range=found))


def _read(
    job: Job,
    sets: Sequence[Images],
    reading: Reading,
    drawn: bool,
    table: Path,
    progress: Progress,
) -> list[Images]:
    """Training, test and validation images, if there are such, that decode and share nothing."""
    decoded = [images.decoded(job.decoding) for images in sets]
    read = readable(decoded, reading.skip_bad_images, job.workers, progress)
    names = ("training", "test", "validation")[: len(read)]
    parts = dict(reversed(list(zip(names, read, strict=True))))
    settled = settle(parts, reading, table, drawn="test" if drawn else "")
    for note in settled.notes:
        tell(progress, note)
    return [settled.parts[name] for name in names]


def ready_to_train(
    job: Job, training: Images, output: Path, accelerator: Accelerator, progress: Progress
) -> Tried | None:
    """Try one batch, unless the run has begun.

    :raises InputError: if it cannot be trained on
    """
    if _begun(output):
        return None
    with shown(progress, f"trying one batch, {job.loss}"):
        return dry_run(job, training, accelerator)


def _as_large_as_fits(job: Job, training: Images, output: Path, accelerator: Accelerator) -> Job:
    """The job with the largest batch; with that of the run, if it has begun."""
    found = read_settings(output)
    if found is not None and "recipe" in found and _begun(output):
        return replace(job, recipe=replace(job.recipe, batch_size=found["recipe"]["batch_size"]))
    return look.with_largest_batch(job, training, accelerator)


def check_run(
    job: Job,
    dataset: str,
    divided: Split,
    folder: Path,
    test_images: Images | None = None,
) -> dict[str, Any]:
    """The settings that tell the run of this job from others.

    :param test_images: where nothing else remembers them
    :raises InputError: if the folder holds another run, or one on other images
    """
    parts = {"train": divided.training, "calibration": divided.calibration}
    parts |= {} if divided.selection is None else {"selection": divided.selection}
    parts |= {} if test_images is None else {"test": test_images}
    settings = {
        "data": resolved(dataset),
        "images": {"train": len(divided.training), "validation": divided.held_out},
        "class_names": list(divided.training.class_names),
        **job.settings,
        "digests": {name: digest(images) for name, images in parts.items()},
    }
    found = read_settings(folder)
    if found is not None and "data" in found and _begun(folder):
        _refuse_more_epochs(job, found, settings, folder)
        check_folder(folder, found | job.settings)  # by which images are divided, too
        before, now = found.get("digests", {}), settings["digests"]
        if changed := [name for name in now if before.get(name, now[name]) != now[name]]:
            raise InputError(
                f"the {' and '.join(changed)} images of {dataset} have changed since {folder} was "
                "begun (their choice, labels, names or content); choose another output folder"
            )
        # images are known by what they are, wherever they lie by now
        settings |= {"data": found["data"], "digests": before}
    check_folder(folder, settings, _begun)
    return settings


def claim_run(
    job: Job,
    dataset: str,
    divided: Split,
    folder: Path,
    test_images: Images | None = None,
) -> None:
    """Make the folder that of this job, or find that it is; takes and raises what
    :func:`check_run` does."""
    settings = check_run(job, dataset, divided, folder, test_images)
    if not _begun(folder):  # those of a run that has nothing to show, perhaps another one
        (folder / "best.pt").unlink(missing_ok=True)
    claim_folder(folder, settings, _begun)


def _refuse_more_epochs(
    job: Job, found: dict[str, Any], given: dict[str, Any], folder: Path
) -> None:
    """Say how a run is trained for longer, whose schedule was made for fewer epochs."""
    if "recipe" not in found:
        return
    before, now = found["recipe"], json.loads(json.dumps(given["recipe"]))
    if before["epochs"] < now["epochs"] and before | {"epochs": now["epochs"]} == now:
        instead = "instead of --pretrained " if job.source.pretrained else ""
        done = "the head alone"
        if before["epochs"]:
            done = f"{before['epochs']} epochs, along whose length its learning rate falls"
        raise InputError(
            f"{folder} holds a training of {done}. To train {now['epochs']} more from its "
            "weights, give the same command with --weights "
            f"{folder / 'model/model.safetensors'} {instead}and --output "
            f"{folder.with_name(folder.name + '-longer')}"
        )


def _begun(folder: Path) -> bool:
    """Whether an epoch was finished there, or a comparison has models there."""
    files = ("checkpoint.pt", "model/*", "runs/*/*")
    return any(next(folder.glob(file), None) for file in files)


def train_model(
    job: Job,
    divided: Split,
    test_images: Images | None,
    output: Path,
    accelerator: Accelerator,
    progress: Progress,
    store: Path | None = None,
) -> Path:
    """Train one model into its output folder; nothing to do if it is there already.

    :param store: folder of kept features; if not given, the run's own
    :return: the model folder
    """
    folder = output / "model"
    if (folder / "calibration.json").is_file():
        if accelerator.is_main_process and not (folder / CARD).is_file():  # killed in between
            write_card(output)
        return folder
    train_images, classes = divided.training, len(divided.training.class_names)
    if accelerator.is_main_process:
        known = [
            ("train", train_images),
            ("validation", divided.selection),
            ("calibration", divided.calibration),
            ("test", test_images),
        ]
        write_provenance(
            output, [describe(split, images) for split, images in known if images is not None]
        )
        write_table(output / "splits.csv", data.table_of_splits(known))
    model = build_model(job, classes)
    config = data_config(job, model)
    selection = None
    if divided.selection is not None:
        selection = eval_loader(divided.selection, config, job, accelerator)
    wanted = job.recipe.keep == "best" and selection is not None
    best = Best(output, wanted, accelerator.is_main_process)
    before: list[dict[str, float]] = []
    if job.source.starts_trained and not (output / "checkpoint.pt").is_file():
        before = head_first(
            job,
            model,
            divided,
            config,
            store or output / "outputs",
            best.offer,
            accelerator,
            progress,
        )
    model = fit(
        job, model, train_images, config, selection, output, best.offer, accelerator, progress,
        before,
    )  # fmt: skip
    accelerator.wait_for_everyone()  # until the best weights are on disk
    kept = best.put_into(model)
    summary: dict[str, Any] = {"kept": kept} if kept else {}
    if selection is not None:
        summary["val_accuracy"] = accuracy(*evaluate(model, selection, accelerator))
    # in float32 whatever it was trained in, since that is what it is exported and scored in
    calibrating = eval_loader(divided.calibration, config, job, accelerator)
    logits, labels = evaluate(model, calibrating, accelerator)
    heads = head_modules(model)
    score = heads[0].score if heads else "energy_score"
    with input_errors():  # of logits that are NaN
        calibration = Calibration.fit(logits, labels, score, job.alpha)
    calibration = replace(calibration, guarantee=divided.guarantee)
    losses = [row["train_loss"] for row in read_lines(output / "metrics.jsonl") if "lr" in row]
    for doubt in doubts_of(model, calibration, logits, labels, losses):
        warn(progress, f"{job.loss}, seed {job.seed}: {doubt}")
    summary |= {"temperature": calibration.temperature, "guarantee": calibration.guarantee}
    if test_images is not None:
        test_loader = eval_loader(test_images, config, job, accelerator)
        logits, labels = evaluate(model, test_loader, accelerator)
        rejected = calibration.rejects(calibration.score_of(logits))
        summary["test_accuracy"] = accuracy(logits, labels)
        summary["test_ECE"] = expected_calibration_error(logits / calibration.temperature, labels)
        summary["test_false_alarm_rate"] = float(rejected.double().mean())
        table = rates_of_classes(logits.argmax(dim=1), labels, rejected, train_images.class_names)
        summary["classes"] = summed_up(table)
        if accelerator.is_main_process:
            write_table(output / "classes.csv", table)
            if above := far_above(table, job.alpha):
                warn(progress, f"{job.loss}, seed {job.seed}: {above}")
    if accelerator.is_main_process:
        write_json(output / "summary.json", summary)
        save_model(model, folder, train_images.class_names, config, calibration, job.decoding)
        write_card(output)
    accelerator.wait_for_everyone()
    return folder
