"""What to train and how, and the objects that follow from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

# Here, before there is a process group: imported later, as DDP does, its functions would have the
# group as a default argument and keep it, and its threads, alive until the interpreter is gone.
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from isomax.calibration import RejectionThreshold
from isomax_adapters.timm import attach, create_model
from isomax_evaluation.data.preprocessing import preprocessing_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import Recipe


@dataclass(frozen=True)
class Job:
    """One model to train: what, on what, how."""

    model: str
    loss: str
    recipe: Recipe
    seed: int = 0
    pretrained: bool = False
    small_images: bool = False
    image_size: int | None = None
    alpha: float = 0.05
    workers: int = 2


def check_job(job: Job) -> None:
    """Refuse what cannot work, before any work.

    :raises InputError: naming the value and what it may be
    """
    if job.loss not in LOSSES:
        raise InputError(f"unknown loss {job.loss!r}; choose from {', '.join(LOSSES)}")
    if job.image_size is not None and job.image_size < 1:
        raise InputError(f"the image size is {job.image_size}; expected at least 1")
    if not 0 <= job.seed < 2**32 or job.workers < 0:
        raise InputError(
            f"the seed is {job.seed} and there are {job.workers} workers; expected at least 0"
        )
    if {len(job.recipe.mean), len(job.recipe.std)} - {0, 3} or any(s <= 0 for s in job.recipe.std):
        raise InputError(
            f"the normalisation has means {job.recipe.mean} and deviations {job.recipe.std}; "
            "expected three of each, deviations above 0"
        )
    if job.recipe.augment not in ("timm", "pad-crop", "none"):
        raise InputError(f"unknown augmentation {job.recipe.augment!r}; timm, pad-crop or none")
    if job.recipe.in_memory and job.recipe.augment == "timm":
        raise InputError("timm's augmentation works on files; with in_memory use pad-crop or none")
    if job.recipe.mixed_precision not in ("no", "bf16", "fp16"):
        raise InputError(f"unknown mixed_precision {job.recipe.mixed_precision!r}; no, bf16, fp16")
    if job.recipe.epochs < 1 or job.recipe.batch_size < 2:
        raise InputError(
            f"epochs is {job.recipe.epochs} and batch size {job.recipe.batch_size}; expected at "
            "least 1 and 2"
        )
    mixes = job.recipe.mixup or job.recipe.cutmix or job.recipe.smoothing
    if LOSSES[job.loss].mosaic and mixes:
        raise InputError(f"{job.loss} makes mosaics of its own; switch mixup and smoothing off")
    try:
        RejectionThreshold(job.alpha)
        with torch.device("meta"):
            model = build_model(job, num_classes=2, pretrained=False)
        make_scheduler(make_optimizer(model, job.recipe), job.recipe, updates=1)
    except ValueError as error:
        raise InputError(str(error)) from error


def build_model(job: Job, num_classes: int, pretrained: bool | None = None) -> nn.Module:
    """The timm model of a job, with its head. The same seed gives the same backbone for every
    loss."""
    torch.manual_seed(job.seed)
    head = LOSSES[job.loss].head
    kwargs: dict[str, Any] = {"small_images": True} if job.small_images else {}
    cfg = timm.models.get_pretrained_cfg(job.model) if timm.is_model(job.model) else None
    if job.image_size and cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = job.image_size
    pretrained = job.pretrained if pretrained is None else pretrained
    name = f"softmax_{job.model}" if job.small_images else job.model
    try:
        model = create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"no pretrained weights of {job.model}: {lines[0]}") from error
    return attach(model, head) if head else model


def fetch_weights(job: Job, output: Path) -> None:
    """Have the pretrained weights at hand, before a folder is made for what starts from them.

    :raises InputError: if they cannot be had
    """
    if job.pretrained and not output.exists():
        build_model(job, num_classes=2)


def data_config(job: Job, model: nn.Module) -> dict[str, Any]:
    """Preprocessing, as ``timm.data.create_transform`` takes it."""
    config = preprocessing_of(model, job.image_size or (32 if job.small_images else None))
    given = {"mean": job.recipe.mean, "std": job.recipe.std}
    return config | {name: values for name, values in given.items() if values}


@contextmanager
def accelerator_for(recipe: Recipe) -> Iterator[Accelerator]:
    """Devices, processes and precision, as the launcher set them up; a process group that was not
    there before is gone afterwards."""
    # a process may train again, with another precision
    AcceleratorState._reset_state()
    ours = not torch.distributed.is_initialized()
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        # without this Accelerate takes several processes on the CPU for one each
        cpu=not torch.accelerator.is_available(),
    )
    yield accelerator
    # not after an error, which the other processes need not have: they would wait for each other
    if ours and torch.distributed.is_initialized():
        accelerator.free_memory()
        accelerator.end_training()
        PartialState._reset_state()


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser of the recipe.

    :raises InputError: if timm has no such optimiser
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
            filter_bias_and_bn=not recipe.decay_all,
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"timm cannot make the optimiser {recipe.opt!r}: {error}") from error
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Any:
    """timm's schedule of the recipe, for so many updates per epoch.

    :raises InputError: if timm has no such schedule
    """
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        decay_epochs=max(1, recipe.epochs // 3),
        decay_milestones=list(recipe.decay_milestones),
        decay_rate=recipe.decay_rate,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    if scheduler is None:
        raise InputError(f"timm has no learning rate schedule {recipe.sched!r}")
    return scheduler
