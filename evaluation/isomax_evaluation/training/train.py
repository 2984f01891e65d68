"""Train or fine-tune a timm model with any of the losses: resumable, on one process or several."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from rich.progress import Progress

from isomax.calibration import (
    MAX_TEMPERATURE,
    Calibration,
    RejectionThreshold,
    expected_calibration_error,
)
from isomax_adapters.timm import save_model
from isomax_adapters.timm.attaching import head_modules
from isomax_evaluation import data
from isomax_evaluation.data import Images
from isomax_evaluation.data.digests import describe
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import write_json
from isomax_evaluation.output.folders import claim_folder
from isomax_evaluation.output.progress import progress_bar
from isomax_evaluation.output.provenance import write_provenance
from isomax_evaluation.training.jobs import (
    Job,
    accelerator_for,
    build_model,
    check_job,
    data_config,
    fetch_weights,
)
from isomax_evaluation.training.loop import accuracy, eval_loader, evaluate, fit
from isomax_evaluation.training.recipes import RECIPES, Recipe


def train(
    dataset: str,
    output: str | Path,
    model: str = "resnet18",
    loss: str = "isomax",
    recipe: Recipe | str = "finetune",
    seed: int = 0,
    pretrained: bool = False,
    small_images: bool = False,
    image_size: int | None = None,
    alpha: float = 0.05,
    root: str | None = None,
    images_per_class: int | None = None,
    val_share: float = 0.1,
    skip_bad_images: bool = False,
    workers: int = 2,
    started: Callable[[], object] | None = None,
) -> Path:
    """Train a model and calibrate it on held-out training images; the test images are not touched
    until the end.

    Run again with the same arguments, it goes on from the last finished epoch.

    :param dataset: name or folder, see :mod:`isomax_evaluation.data`
    :param output: folder that gets ``model/`` (a model folder), ``metrics.jsonl`` and checkpoints
    :param model: a timm architecture
    :param loss: one of ``softmax``, ``isomax``, ``isomax+``, ``dismax``, ``dismax+fpr``
    :param recipe: a recipe or the name of one
    :param pretrained: start from timm's pretrained weights
    :param small_images: a 3x3 stride-1 stem without pooling, and 32x32 inputs
    :param image_size: input height and width, if not the model's own
    :param alpha: false-alarm rate that the rejection threshold is calibrated for
    :param root: folder that named datasets are read from
    :param images_per_class: use at most so many training images of each class
    :param val_share: share of the training images held out for validation and calibration
    :param skip_bad_images: leave images that do not decode out, rather than refuse to start
    :param workers: processes that decode images
    :param started: called when all that was given has turned out to be of use, before training
    :return: the model folder
    :raises InputError: if anything given cannot be used, before training starts
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    job = Job(model, loss, recipe, seed, pretrained, small_images, image_size, alpha, workers)
    check_job(job)
    if not 0 < val_share < 1:
        raise InputError(f"the share of validation images is {val_share}; expected 0 to 1")
    train_images, test_images = data.open_splits(dataset, root)
    train_images = data.limit_per_class(train_images, images_per_class)
    output = Path(output)
    with (
        accelerator_for(recipe) as accelerator,
        progress_bar(enabled=accelerator.is_main_process) as progress,
    ):
        train_images = data.readable(train_images, skip_bad_images, workers, progress)
        test_images = data.readable(test_images, skip_bad_images, workers, progress)
        train_images, val_images = data.stratified_split(train_images, val_share, seed)
        check_validation(job, val_images)
        fetch_weights(job, output)
        if accelerator.is_main_process:
            claim_run(job, dataset, train_images, val_images, output)
            if started is not None:
                started()
        accelerator.wait_for_everyone()
        return train_model(
            job, train_images, val_images, test_images, output, accelerator, progress
        )


def claim_run(
    job: Job, dataset: str, train_images: Images, val_images: Images, folder: Path
) -> None:
    """Make the folder that of this job, or find that it is.

    :raises InputError: if it holds another run
    """
    settings = {
        "data": dataset,
        "images": {"train": len(train_images), "validation": len(val_images)},
        "class_names": list(train_images.class_names),
        **asdict(job),
    }
    settings.pop("workers")  # how many there are changes nothing
    claim_folder(folder, settings)


def check_validation(job: Job, val_images: Images) -> None:
    """
    :raises InputError: if there are too few validation images for the threshold
    """
    needed = RejectionThreshold(job.alpha).samples_needed
    if len(val_images) < needed:
        raise InputError(
            f"alpha={job.alpha} takes {needed} validation images, there are {len(val_images)}; "
            "give more training images, hold out more of them (isomax train --val-share), "
            "or choose a larger alpha"
        )


def train_model(
    job: Job,
    train_images: Images,
    val_images: Images,
    test_images: Images | None,
    output: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Path:
    """Train one model into its output folder; nothing to do if it is there already.

    :return: the model folder
    """
    folder = output / "model"
    if (folder / "calibration.json").is_file():
        return folder
    classes = len(train_images.class_names)
    if accelerator.is_main_process:
        known = [("train", train_images), ("validation", val_images), ("test", test_images)]
        write_provenance(output, [describe(split, images) for split, images in known if images])
    model = build_model(job, classes)
    config = data_config(job, model)
    val_loader = eval_loader(val_images, config, job, accelerator)
    model = fit(job, model, train_images, config, val_loader, output, accelerator, progress)
    # in float32 whatever it was trained in, since that is what it is exported and scored in
    logits, labels = evaluate(model, val_loader, accelerator)
    heads = head_modules(model)
    score = heads[0].score if heads else "entropic_score"
    calibration = Calibration.fit(logits, labels, score, job.alpha)
    doubts = doubts_of(calibration, logits.shape[1])
    if doubts and accelerator.is_main_process:
        progress.console.print(f"[bold]warning[/bold]: {job.loss}, seed {job.seed}: {doubts}")
    summary = {"val_accuracy": accuracy(logits, labels), "temperature": calibration.temperature}
    if test_images is not None:
        test_loader = eval_loader(test_images, config, job, accelerator)
        logits, labels = evaluate(model, test_loader, accelerator)
        scores = calibration.score_of(logits)
        summary["test_accuracy"] = accuracy(logits, labels)
        summary["test_ECE"] = expected_calibration_error(logits / calibration.temperature, labels)
        summary["test_false_alarm_rate"] = float((scores > calibration.threshold).float().mean())
    if accelerator.is_main_process:
        write_json(output / "summary.json", summary)
        save_model(model, folder, train_images.class_names, config, calibration)
    accelerator.wait_for_everyone()
    return folder


def doubts_of(calibration: Calibration, classes: int) -> str:
    """What makes a calibrated model useless; empty if nothing is known to."""
    if calibration.score == "entropic_score" and calibration.threshold > math.log(classes) - 1e-6:
        return (
            "the threshold is the largest entropy that there is, so that no image will be called "
            "unknown; train for longer"
        )
    if calibration.temperature > 0.99 * MAX_TEMPERATURE:
        return (
            "the validation images are classified no better than by chance, so that every "
            "confidence will be the same; train for longer"
        )
    return ""
