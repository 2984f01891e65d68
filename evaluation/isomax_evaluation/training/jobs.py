"""What to train and how, and the objects that follow from it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

# Here, before there is a process group: imported later, as DDP does, its functions would have the
# group as a default argument and keep it, and its threads, alive until the interpreter is gone.
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from timm.models import adapt_input_conv, get_model_input_config
from timm.optim import (
    create_optimizer_v2,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from isomax.calibration import RejectionThreshold
from isomax_adapters.runtime.decoding import CHANNELS, Decoding
from isomax_adapters.timm import attach, create_model
from isomax_adapters.timm.attaching import classifier_names
from isomax_adapters.timm.checkpoints import load_weights, read_checkpoint
from isomax_adapters.timm.sources import no_weights
from isomax_evaluation.data.preprocessing import preprocessing_of
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import Recipe, check_recipe, learning_rate

WARMUP_LR = 1e-5
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # by torchrun
#: variables by which Accelerate would train in another way than settings and model folder say
OTHER_WAYS = (
    *("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)


@dataclass(frozen=True)
class Job:
    """One model to train: what, on what, how."""

    model: str
    loss: str
    recipe: Recipe
    seed: int = 0
    pretrained: bool = False
    small_images: bool = False
    image_size: int | tuple[int, int] | None = None  #: height and width, if not one for both
    alpha: float = 0.05
    workers: int = 2
    weights: str | None = None  #: a checkpoint file to start from
    in_chans: int | None = None
    grey_range: tuple[int, int] | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None

    @property
    def starts_trained(self) -> bool:
        """Whether the backbone has been trained before."""
        return self.pretrained or self.weights is not None or ":" in self.model

    @property
    def decoding(self) -> Decoding:
        """How images are read for the model."""
        return Decoding(self.in_chans or 3, self.grey_range, self.orientation or "stored")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is other than the model's own, by timm's names."""
        return {
            "img_size": self.image_size or (32 if self.small_images else None),
            "in_chans": self.in_chans,
            "crop_mode": self.crop_mode,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": self.recipe.mean or None,
            "std": self.recipe.std or None,
        }


def check_job(job: Job) -> None:
    """Refuse what cannot work, before any work.

    :raises InputError: naming the value and what it may be
    """
    if job.loss not in LOSSES:
        raise InputError(f"unknown loss {job.loss!r}; choose from {', '.join(LOSSES)}")
    check_preprocessing(job)
    check_recipe(job.recipe)
    if not 0 <= job.seed < 2**32 or job.workers < 0:
        raise InputError(
            f"the seed is {job.seed} and there are {job.workers} workers; expected at least 0"
        )
    if job.recipe.epochs == 0 and not job.starts_trained:
        raise InputError(
            "epochs is 0; expected at least 1 (0 epochs, the head alone, take --pretrained or "
            "--weights)"
        )
    means, deviations, wanted = job.recipe.mean, job.recipe.std, job.decoding.channels
    if {len(means), len(deviations)} - {0, 1, wanted}:
        raise InputError(
            f"the normalisation has means {means} and deviations {deviations}; expected one or "
            f"{wanted} of each"
        )
    if job.pretrained and job.weights:
        raise InputError("--pretrained and --weights are two places to start from; give one")
    mixes = job.recipe.mixup or job.recipe.cutmix or job.recipe.smoothing
    if LOSSES[job.loss].mosaic and mixes:
        raise InputError(f"{job.loss} makes mosaics of its own; switch mixup and smoothing off")
    if LOSSES[job.loss].mosaic and job.recipe.class_weights:
        raise InputError(
            f"{job.loss} mixes the classes of a batch, so that class_weights do not reach them; "
            "balanced_sampling does"
        )
    try:
        RejectionThreshold(job.alpha)
        with torch.device("meta"):
            model = build_model(job, num_classes=2, pretrained=False)
        channels, *_ = data_config(job, model)["input_size"]
        if channels != job.decoding.channels:
            raise InputError(f"{job.model} takes {channels} channels; give in_chans {channels}")
        make_scheduler(make_optimizer(model, job.recipe), job.recipe, updates=1)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def check_preprocessing(job: Job) -> None:
    """Refuse what images cannot be made into.

    :raises InputError: naming the value and what it may be
    """
    size = job.image_size
    sides = () if size is None else (size,) if isinstance(size, int) else size
    if len(sides) > 2 or any(side < 1 for side in sides):
        raise InputError(
            f"the image size is {size}; expected at least 1, or height and width of at least 1"
        )
    for name, value, allowed in (
        ("in_chans", job.in_chans, CHANNELS),
        ("crop_mode", job.crop_mode, ("center", "squash", "border")),
        ("interpolation", job.interpolation, ("bicubic", "bilinear")),
    ):
        if value is not None and value not in allowed:
            listed = ", ".join(map(str, allowed))
            raise InputError(f"{name} is {value!r}; expected one of {listed}, which export takes")
    with input_errors():
        job.decoding  # noqa: B018
    if job.crop_pct is not None and not 0 < job.crop_pct <= 1:
        raise InputError(f"crop_pct is {job.crop_pct}; expected a share in (0, 1]")
    if job.in_chans == 4 and job.recipe.auto_augment:
        raise InputError("auto_augment works on grey and RGB; leave it out with in_chans 4")


def recipe_for(architecture: str, starts_trained: bool) -> str:
    """The name of the recipe that suits an architecture, pretrained or not.

    :raises InputError: if there is no such architecture
    """
    if not starts_trained and ":" not in architecture:
        return "scratch"
    with input_errors(), torch.device("meta"):
        model = create_model(architecture, num_classes=2)
    attends = any("attn" in name for name, _ in model.named_modules())
    return "finetune-transformer" if attends else "finetune"


def build_model(job: Job, num_classes: int, pretrained: bool | None = None) -> nn.Module:
    """The timm model of a job, with its head. The same seed gives the same backbone for every
    loss."""
    torch.manual_seed(job.seed)
    head = LOSSES[job.loss].head
    kwargs: dict[str, Any] = {"small_images": True} if job.small_images else {}
    cfg = timm.models.get_pretrained_cfg(job.model) if timm.is_model(job.model) else None
    if job.image_size and cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = job.image_size
    if job.decoding.channels != 3:
        kwargs["in_chans"] = job.decoding.channels
    from_hub = job.pretrained or ":" in job.model
    wanted = pretrained is not False
    pretrained = from_hub and wanted
    name = f"softmax_{job.model}" if job.small_images else job.model
    try:
        model = create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise InputError(
            f"{no_weights(job.model, error)}; offline, give a file that has them with --weights"
        ) from error
    if job.weights is not None and wanted:
        _load(model, job)
    return attach(model, head) if head else model


def _load(model: nn.Module, job: Job) -> None:
    """The weights of a file, but for a classifier of other classes.

    :raises InputError: if it cannot be read, or is of another architecture
    """
    assert job.weights is not None
    path = Path(job.weights).expanduser()
    with input_errors():
        checkpoint = read_checkpoint(path)
        if job.decoding.channels != 3:
            checkpoint = replace(checkpoint, tensors=_of_channels(checkpoint.tensors, model, job))
        load_weights(model, checkpoint, training_follows=True)


def _of_channels(tensors: dict[str, Tensor], model: Any, job: Job) -> dict[str, Tensor]:
    """Weights for as many channels as a job has, as timm makes them of three."""
    first = get_model_input_config(model)["first_conv"]
    names = [f"{name}.weight" for name in ((first,) if isinstance(first, str) else first or ())]
    made = {
        name: adapt_input_conv(job.decoding.channels, tensors[name])
        for name in names
        if name in tensors and tensors[name].shape[1] == 3
    }
    return tensors | made


def fetch_weights(job: Job, output: Path) -> None:
    """Have the pretrained weights at hand, before a folder is made for what starts from them.

    :raises InputError: if they cannot be had
    """
    if job.starts_trained and not output.exists():
        build_model(job, num_classes=2)


def data_config(job: Job, model: nn.Module) -> dict[str, Any]:
    """Preprocessing, as ``timm.data.create_transform`` takes it.

    :raises ValueError: if the model is built for another size or number of channels
    """
    return preprocessing_of(model, job.preprocessing)


@contextmanager
def accelerator_for(recipe: Recipe) -> Iterator[Accelerator]:
    """Devices, processes and precision, as the launcher set them up; a process group that was not
    there before is gone afterwards."""
    _check_environment()
    # a process may train again, with another precision
    AcceleratorState._reset_state()
    ours = not torch.distributed.is_initialized()
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            # without this Accelerate takes several processes on the CPU for one each
            cpu=not torch.accelerator.is_available(),
            # what the recipe says, whatever the environment does
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
        )
    except ValueError as error:
        if "mixed precision" not in str(error):  # of a device that cannot
            raise
        raise InputError(f"mixed_precision {recipe.mixed_precision}: {error}; give no") from error
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed_precision fp16 takes a GPU, without one it does nothing; give bf16")
    yield accelerator
    # not after an error, which the other processes need not have: they would wait for each other
    if ours and torch.distributed.is_initialized():
        accelerator.free_memory()
        accelerator.end_training()
        PartialState._reset_state()


def _check_environment() -> None:
    """Refuse half a launch, and ways to train that are not the recipe's.

    :raises InputError: naming the variables
    """
    present = {name: os.environ[name] for name in LAUNCHED if os.environ.get(name)}
    one = present.get("WORLD_SIZE", "1") == "1" and present.get("RANK", "0") == "0"
    missing = [name for name in LAUNCHED if name not in present]
    if missing and not (one and "LOCAL_RANK" not in present):
        found = ", ".join(f"{name}={value}" for name, value in present.items())
        raise InputError(
            f"the environment has {found}, as of one of several processes, but not "
            f"{', '.join(missing)}; start it with torchrun or accelerate launch, or unset them"
        )
    for name in OTHER_WAYS:
        if os.environ.get(name, "false").lower() == "true":
            raise InputError(
                f"{name} is set; every process here has the whole model: unset it, or answer "
                "'accelerate config' without it"
            )


def head_factor(job: Job) -> float:
    """By what the learning rate of the head differs from the backbone's."""
    if job.recipe.head_lr is not None:
        return job.recipe.head_lr
    return LOSSES[job.loss].head_lr if job.starts_trained else 1.0


def make_optimizer(model: nn.Module, recipe: Recipe, factor: float = 1.0) -> torch.optim.Optimizer:
    """timm's optimiser of the recipe.

    :param factor: of the learning rate of the head, as :func:`head_factor` has it
    :raises InputError: if timm has no such optimiser
    """
    groups: Any = {}
    if factor != 1:
        groups = {"param_group_fn": partial(_groups, recipe=recipe, factor=factor)}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=learning_rate(recipe),
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
            filter_bias_and_bn=not recipe.decay_all,
            **groups,
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"timm cannot make the optimiser {recipe.opt!r}: {error}") from error
    return optimizer


def _groups(model: nn.Module, recipe: Recipe, factor: float) -> list[dict[str, Any]]:
    """timm's parameter groups, those of the head with a learning rate of their own."""
    decay = 0.0 if recipe.decay_all else recipe.weight_decay
    if recipe.layer_decay is not None:
        groups = param_groups_layer_decay(model, decay, layer_decay=recipe.layer_decay)
    else:
        groups = param_groups_weight_decay(model, decay)
    if recipe.decay_all:
        groups = [group | {"weight_decay": recipe.weight_decay} for group in groups]
    layers = [model.get_submodule(name) for name in classifier_names(model)]
    head = {id(parameter) for layer in layers for parameter in layer.parameters()}
    apart: list[dict[str, Any]] = []
    for group in groups:
        mine = [p for p in group["params"] if id(p) in head]
        rest = [p for p in group["params"] if id(p) not in head]
        scale = group.get("lr_scale", 1.0)
        apart += [group | {"params": rest}] if rest else []
        apart += [group | {"params": mine, "lr_scale": scale * factor}] if mine else []
    return apart


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Any:
    """timm's schedule of the recipe, for so many updates per epoch.

    :raises InputError: if timm has no such schedule
    """
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=max(1, recipe.epochs),
        decay_epochs=max(1, recipe.epochs // 3),
        decay_milestones=list(recipe.decay_milestones),
        decay_rate=recipe.decay_rate,
        warmup_epochs=recipe.warmup_epochs,
        # timm's own, unless the learning rate would fall from there
        warmup_lr=WARMUP_LR if learning_rate(recipe) > WARMUP_LR else learning_rate(recipe) / 10,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    if scheduler is None:
        raise InputError(f"timm has no learning rate schedule {recipe.sched!r}")
    return scheduler
