"""What to train and how, and the objects that follow from it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from isomax_adapters.runtime.decoding import Decoding
from isomax_adapters.timm import attach, create_model
from isomax_adapters.timm.attaching import classifier_names
from isomax_adapters.timm.checkpoints import load_weights, read_checkpoint
from isomax_adapters.timm.registry import built_for_one_size
from isomax_evaluation.data.preprocessing import preprocessing_of
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.settings import check_settings
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import Recipe, check_recipe, learning_rate
from isomax_evaluation.training.source import Source

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

    source: Source
    loss: str
    recipe: Recipe
    preprocessing: Preprocessing = Preprocessing()
    seed: int = 0
    alpha: float = 0.05
    workers: int = 2

    @property
    def model(self) -> str:
        """The architecture."""
        return self.source.model

    @property
    def decoding(self) -> Decoding:
        """How images are read for the model."""
        mine = self.preprocessing
        range_: Any = None if mine.grey_range == "auto" else mine.grey_range
        return Decoding(mine.in_chans or 3, range_, mine.orientation or "stored")

    @property
    def timm_preprocessing(self) -> dict[str, Any]:
        """What is other than the model's own, by timm's names."""
        mine = self.preprocessing.of_a_model
        if self.source.small_images:
            mine["img_size"] = mine["img_size"] or 32
        return mine | {"mean": self.recipe.mean or None, "std": self.recipe.std or None}

    @property
    def settings(self) -> dict[str, Any]:
        """All that tells it from another, as JSON has it; how many processes read changes
        nothing."""
        found = asdict(self)
        found.pop("workers")
        return found.pop("source") | found.pop("preprocessing") | found


def check_job(job: Job) -> None:
    """Refuse what cannot work, before any work.

    :raises InputError: naming the value and what it may be
    """
    if job.loss not in LOSSES:
        raise InputError(f"unknown loss {job.loss!r}; choose from {', '.join(LOSSES)}")
    check_preprocessing(job)
    check_recipe(job.recipe)
    if not 0 <= job.seed < 2**32:
        raise InputError(f"the seed is {job.seed}; expected 0 to {2**32 - 1}")
    if job.recipe.epochs == 0 and not job.source.starts_trained:
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
    if job.source.pretrained and job.source.weights:
        raise InputError("--pretrained and --weights are two places to start from; give one")
    mixes = job.recipe.mixup or job.recipe.cutmix or job.recipe.smoothing
    if LOSSES[job.loss].mosaic and mixes:
        raise InputError(f"{job.loss} makes mosaics of its own; switch mixup and smoothing off")
    if LOSSES[job.loss].mosaic and job.recipe.class_weights:
        raise InputError(
            f"{job.loss} mixes the classes of a batch, so that class_weights do not reach them; "
            "balanced_sampling does"
        )
    with input_errors():
        RejectionThreshold(job.alpha)
    with torch.device("meta"):
        model = build_model(job, num_classes=2, pretrained=False)
    channels, *_ = data_config(job, model)["input_size"]
    if channels != job.decoding.channels:
        raise InputError(f"{job.model} takes {channels} channels; give in_chans {channels}")
    make_scheduler(make_optimizer(model, job.recipe), job.recipe, updates=1)


def check_preprocessing(job: Job) -> None:
    """Refuse what images cannot be made into.

    :raises InputError: naming the value and what it may be
    """
    check_settings(job.preprocessing)
    job.decoding  # noqa: B018  # refuses what it cannot be
    if job.preprocessing.in_chans == 4 and job.recipe.auto_augment:
        raise InputError("auto_augment works on grey and RGB; leave it out with in_chans 4")


def recipe_for(architecture: str, starts_trained: bool) -> str:
    """The name of the recipe that suits an architecture, pretrained or not.

    :raises InputError: if there is no such architecture
    """
    if not starts_trained and ":" not in architecture:
        return "scratch"
    with torch.device("meta"):
        model = create_model(architecture, num_classes=2)
    attends = any("attn" in name for name, _ in model.named_modules())
    return "finetune-transformer" if attends else "finetune"


def build_model(job: Job, num_classes: int, pretrained: bool | None = None) -> nn.Module:
    """The timm model of a job, with its head. The same seed gives the same backbone for every
    loss."""
    torch.manual_seed(job.seed)
    head = LOSSES[job.loss].head
    kwargs: dict[str, Any] = {"small_images": True} if job.source.small_images else {}
    if job.preprocessing.image_size and built_for_one_size(job.model):
        kwargs["img_size"] = job.preprocessing.image_size
    if job.decoding.channels != 3:
        kwargs["in_chans"] = job.decoding.channels
    from_hub = job.source.pretrained or ":" in job.model
    wanted = pretrained is not False
    pretrained = from_hub and wanted
    name = f"softmax_{job.model}" if job.source.small_images else job.model
    with input_errors(AssertionError, TypeError):  # of what an architecture does not take
        model = create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    if job.source.weights is not None and wanted:
        _load(model, job)
    return attach(model, head) if head else model


def _load(model: nn.Module, job: Job) -> None:
    """The weights of a file, but for a classifier of other classes.

    :raises InputError: if it cannot be read, or is of another architecture
    """
    assert job.source.weights is not None
    path = Path(os.path.expanduser(job.source.weights))
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
    if job.source.starts_trained and not output.exists():
        build_model(job, num_classes=2)


def data_config(job: Job, model: nn.Module) -> dict[str, Any]:
    """Preprocessing, as ``timm.data.create_transform`` takes it.

    :raises InputError: if the model is built for another size or number of channels
    """
    return preprocessing_of(model, job.timm_preprocessing)


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
    return LOSSES[job.loss].head_lr if job.source.starts_trained else 1.0


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
    rate = learning_rate(recipe)
    with input_errors(AssertionError, TypeError):  # of a schedule that does not take the numbers
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=max(1, recipe.epochs),
            decay_epochs=max(1, recipe.epochs // 3),
            decay_milestones=list(recipe.decay_milestones),
            decay_rate=recipe.decay_rate,
            warmup_epochs=recipe.warmup_epochs,
            # timm's own, unless the learning rate would fall from there
            warmup_lr=WARMUP_LR if rate > WARMUP_LR else rate / 10,
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
    if scheduler is None:
        raise InputError(f"timm has no learning rate schedule {recipe.sched!r}")
    return scheduler
