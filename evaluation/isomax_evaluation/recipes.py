"""How to train: recipes as data. Names and meanings are timm's; losses are the papers'."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from isomax.losses import FractionalProbabilityLoss, IsoMaxLoss


@dataclass(frozen=True)
class Loss:
    """A head and the criterion it is trained with."""

    head: str | None  #: a name in ``isomax_adapters.timm.HEADS``; ``None`` keeps the linear layer
    criterion: Callable[[], nn.Module]
    mosaic: bool = False  #: DisMax's fractional probability regularisation


LOSSES = {
    "softmax": Loss(None, nn.CrossEntropyLoss),
    "isomax": Loss("isomax", IsoMaxLoss),
    "isomax+": Loss("isomax+", IsoMaxLoss),
    "dismax": Loss("dismax", IsoMaxLoss),
    "dismax+fpr": Loss("dismax", FractionalProbabilityLoss, mosaic=True),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, but not on what."""

    epochs: int = 30
    batch_size: int = 64  #: over all processes and accumulated steps
    opt: str = "sgd"  #: sgd is with Nesterov momentum, as in timm
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    layer_decay: float | None = None
    sched: str = "cosine"
    warmup_epochs: int = 0
    decay_milestones: tuple[int, ...] = ()  #: epochs at which sched="multistep" lowers the rate
    decay_rate: float = 0.1
    clip_grad: float | None = None
    augment: str = "timm"  #: timm's training transform, "pad-crop" (CIFAR's) or "none"
    hflip: float = 0.5
    scale: tuple[float, float] = (0.35, 1.0)  #: area of timm's random resized crop
    color_jitter: float = 0.0
    auto_augment: str | None = None
    reprob: float = 0.0  #: random erasing
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    freeze_epochs: int = 0  #: epochs in which only the head is trained
    accumulate: int = 1  #: steps whose gradients are added up
    mixed_precision: str = "no"  #: "no", "bf16" or "fp16"
    compile: bool = False
    channels_last: bool = False


_MACEDO = Recipe(
    # the DisMax paper's CIFAR recipe; lr x0.1 at half, two thirds and five sixths of the training
    epochs=300,
    batch_size=64,
    opt="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    sched="multistep",
    decay_milestones=(150, 200, 250),
    augment="pad-crop",
)

RECIPES = {
    "finetune": Recipe(),
    "digits": Recipe(epochs=10, batch_size=32, lr=0.1, augment="pad-crop", hflip=0.0),
    "macedo2022": _MACEDO,
}
