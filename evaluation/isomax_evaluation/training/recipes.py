"""How to train: recipes as data. Names and meanings are timm's."""

import json
from dataclasses import dataclass, field, fields
from typing import Any


def _is(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, but not on what.

    Each field is an option of ``isomax train`` and ``isomax compare``.
    """

    epochs: int = _is(30, "Passes over the training images.")
    batch_size: int = _is(64, "Images per update, over all processes and accumulated steps.")
    opt: str = _is("sgd", "Optimiser, any of timm's; sgd has Nesterov momentum.")
    lr: float | None = _is(0.05, "Learning rate; if not given, it follows --lr-base.")
    lr_base: float = _is(
        0.02, "Learning rate for 256 images per update, which --batch-size scales as timm does."
    )
    head_lr: float = _is(1.0, "Factor of the learning rate of the head.")
    momentum: float = _is(0.9, "Momentum.")
    weight_decay: float = _is(1e-4, "Weight decay.")
    decay_all: bool = _is(
        False, "Decay batch norm, biases and single numbers too, which timm leaves out."
    )
    layer_decay: float | None = _is(None, "Factor of the learning rate from layer to layer.")
    sched: str = _is("cosine", "Schedule of the learning rate, any of timm's.")
    warmup_epochs: int = _is(0, "Epochs in which the learning rate rises.")
    decay_milestones: tuple[int, ...] = _is((), "Epochs at which --sched multistep decays.")
    decay_rate: float = _is(0.1, "Factor of each decay.")
    clip_grad: float | None = _is(None, "Largest norm of the gradient.")
    augment: str = _is("timm", "timm's training transform, pad-crop (CIFAR's) or none.")
    mean: tuple[float, ...] = _is((), "Channel means of the normalisation, if not the model's.")
    std: tuple[float, ...] = _is((), "Channel deviations of the normalisation.")
    hflip: float = _is(0.5, "Probability of a horizontal flip.")
    scale: tuple[float, ...] = _is((0.35, 1.0), "Area of the random resized crop, from and to.")
    color_jitter: float = _is(0.0, "Strength of colour jitter.")
    auto_augment: str | None = _is(None, "timm's AutoAugment policy, such as rand-m9-mstd0.5.")
    reprob: float = _is(0.0, "Probability of random erasing.")
    smoothing: float = _is(0.0, "Label smoothing.")
    mixup: float = _is(0.0, "Alpha of mixup.")
    cutmix: float = _is(0.0, "Alpha of cutmix.")
    ema_decay: float = _is(0.0, "Decay of the moving average of the weights; 0 for none.")
    freeze_backbone: int = _is(0, "Train only the head in the first N epochs, or 'all'.")
    head_first: int | None = _is(
        None,
        "Train the head of a pretrained network alone for N epochs, on features that are computed "
        "once; what its loss does best with if not given.",
    )
    head_start: str = _is(
        "auto",
        "Where the head of a pretrained network begins: means (of each class's features), paper, "
        "or auto: what the loss does best with.",
    )
    augment_copies: int = _is(0, "Augmented copies of the images that the head is trained on.")
    keep: str = _is(
        "last", "Which weights are kept: last, or best (by accuracy on held-out images)."
    )
    accumulate: int = _is(1, "Steps whose gradients are added up for one update.")
    mixed_precision: str = _is("no", "no, bf16 or fp16.")
    compile: bool = _is(False, "Compile the model.")
    channels_last: bool = _is(False, "Keep images channels-last in memory.")
    in_memory: bool = _is(
        False, "Keep decoded images on the device and crop and flip them there; for small images."
    )


_MACEDO = Recipe(
    # the DisMax paper's CIFAR-10 recipe; lr x0.1 at half, two thirds and five sixths of its length.
    # Decay of all tensors and the normalisation are those of the authors' code
    # (github.com/dlmacedo/distinction-maximization-loss: agents/classifier.py, loaders/image.py)
    epochs=300,
    batch_size=64,
    opt="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    decay_all=True,
    mean=(0.491, 0.482, 0.446),
    std=(0.247, 0.243, 0.261),
    sched="multistep",
    decay_milestones=(150, 200, 250),
    augment="pad-crop",
)

_CIFAR_CPU = Recipe(
    # for test_resnet with --small-images: 85% in ten minutes of a CPU core that has bfloat16
    epochs=12,
    batch_size=128,
    opt="muon",
    lr=0.02,
    momentum=0.9,
    weight_decay=0.01,
    sched="cosine",
    warmup_epochs=2,
    augment="pad-crop",
    mixed_precision="bf16",
    channels_last=True,
    in_memory=True,
)

_FINETUNE = Recipe(
    # a pretrained network of convolutions
    epochs=10,
    batch_size=64,
    lr=None,
    lr_base=0.02,
    keep="best",
)

_FINETUNE_TRANSFORMER = Recipe(
    # as MAE (arXiv 2111.06377, table 9) and BEiT (arXiv 2106.08254) are fine-tuned
    epochs=10,
    batch_size=64,
    opt="adamw",
    lr=None,
    lr_base=5e-4,
    weight_decay=0.05,
    layer_decay=0.75,
    warmup_epochs=1,
    clip_grad=1.0,
    keep="best",
)

RECIPES = {
    "finetune": _FINETUNE,
    "finetune-transformer": _FINETUNE_TRANSFORMER,
    "scratch": Recipe(),
    "digits": Recipe(epochs=10, batch_size=32, lr=0.1, augment="pad-crop", hflip=0.0),
    "macedo2022": _MACEDO,
    "cifar-cpu": _CIFAR_CPU,
}


def learning_rate(recipe: Recipe) -> float:
    """The recipe's own, or its base for 256 images per update scaled to the batch size: by the
    ratio, or its root with optimisers that adapt their steps, as timm's ``train.py`` does."""
    if recipe.lr is not None:
        return recipe.lr
    ratio = recipe.batch_size / 256
    adaptive = any(name in recipe.opt.lower() for name in ("ada", "lamb"))
    return float(recipe.lr_base * (ratio**0.5 if adaptive else ratio))


def same_recipe(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an older run, if what recipes have learnt since is as it was before."""
    learnt = {part.name: part.default for part in fields(Recipe) if part.name not in found}
    plain = json.loads(json.dumps(given))
    return found if found | json.loads(json.dumps(learnt)) == plain else plain
