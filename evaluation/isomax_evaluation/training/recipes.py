"""How to train: recipes as data. Names and meanings are timm's."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.settings import check_settings, numbers, setting

ALL = -1  #: epochs of a backbone that is frozen for all of them


def _epochs(text: str) -> int:
    if text == "all":
        return ALL
    if not text.isdecimal():
        raise ValueError(f"is {text!r}; expected a number of epochs, or all")
    return int(text)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, but not on what.

    Each field is an option of ``isomax train`` and ``isomax compare``.
    """

    epochs: int = setting(30, "Passes over the training images.", "[0, inf)")
    batch_size: int = setting(
        64, "Images per update, over all processes and accumulated steps.", "[2, inf)"
    )
    opt: str = setting("sgd", "Optimiser, any of timm's; sgd has Nesterov momentum.")
    lr: float | None = setting(
        0.05, "Learning rate; if not given, it follows --lr-base.", "(0, inf)"
    )
    lr_base: float = setting(
        0.06,
        "Learning rate for 256 images per update, which --batch-size scales as timm does.",
        "(0, inf)",
    )
    head_lr: float | None = setting(
        None,
        "Factor of the learning rate of the head; on a pretrained network what its loss does best "
        "with if not given, else 1.",
        "(0, inf)",
    )
    momentum: float = setting(0.9, "Momentum.", "[0, 1)")
    weight_decay: float = setting(1e-4, "Weight decay.", "[0, inf)")
    decay_all: bool = setting(
        False, "Decay batch norm, biases and single numbers too, which timm leaves out."
    )
    layer_decay: float | None = setting(
        None, "Factor of the learning rate from layer to layer.", "(0, 1]"
    )
    sched: str = setting(
        "cosine",
        "Schedule of the learning rate, any of timm's that an interrupted run can go on with.",
        *("cosine", "tanh", "step", "multistep", "poly", "constant", "wsd", "rsqrt"),
    )
    warmup_epochs: int = setting(0, "Epochs in which the learning rate rises.", "[0, inf)")
    decay_milestones: tuple[int, ...] = setting(
        (), "Epochs at which --sched multistep decays.", "[1, inf)", parse=numbers(int)
    )
    decay_rate: float = setting(0.1, "Factor of each decay; the power of --sched poly.", "(0, inf)")
    clip_grad: float | None = setting(None, "Largest norm of the gradient.", "(0, inf)")
    augment: str = setting(
        "timm", "timm's training transform, pad-crop (CIFAR's) or none.", "timm", "pad-crop", "none"
    )
    mean: tuple[float, ...] = setting(
        (),
        "Channel means of the normalisation, if not the model's.",
        "(-inf, inf)",
        parse=numbers(float),
    )
    std: tuple[float, ...] = setting(
        (), "Channel deviations of the normalisation.", "(0, inf)", parse=numbers(float)
    )
    hflip: float = setting(0.5, "Probability of a horizontal flip.", "[0, 1]")
    scale: tuple[float, ...] = setting(
        (0.35, 1.0), "Area of the random resized crop, from and to.", "(0, 1]", parse=numbers(float)
    )
    color_jitter: float = setting(0.0, "Strength of colour jitter.", "[0, inf)")
    auto_augment: str | None = setting(None, "timm's AutoAugment policy, such as rand-m9-mstd0.5.")
    reprob: float = setting(0.0, "Probability of random erasing.", "[0, 1]")
    smoothing: float = setting(0.0, "Label smoothing.", "[0, 1)")
    mixup: float = setting(0.0, "Alpha of mixup.", "[0, inf)")
    cutmix: float = setting(0.0, "Alpha of cutmix.", "[0, inf)")
    class_weights: bool = setting(
        False, "Weigh the loss of each image by how rare its class is, so that classes count alike."
    )
    balanced_sampling: bool = setting(False, "Draw images of each class alike often.")
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the weights, 0 for none; it starts small, by timm's "
        "warm-up.",
        "[0, 1)",
    )
    freeze_backbone: int = setting(
        0, "Train only the head in the first N epochs, or 'all'.", "[0, inf)", parse=_epochs
    )
    freeze_bn: bool = setting(
        False,
        "Keep a pretrained network's batch norm statistics, as when it is evaluated; scales and "
        "shifts are trained.",
    )
    head_first: int | None = setting(
        None,
        "Train the head of a pretrained network alone for N epochs, on features that are computed "
        "once; what its loss does best with if not given.",
        "[0, inf)",
    )
    head_start: str = setting(
        "auto",
        "Where the head of a pretrained network begins: means (of each class's features), paper, "
        "or auto: what the loss does best with.",
        *("auto", "means", "paper"),
    )
    augment_copies: int = setting(
        0, "Augmented copies of the images that the head is trained on.", "[0, inf)"
    )
    keep: str = setting(
        "last",
        "Which weights are kept: last, or best (on held-out images).",
        *("last", "best"),
    )
    accumulate: int = setting(1, "Steps whose gradients are added up for one update.", "[1, inf)")
    mixed_precision: str = setting("no", "no, bf16 or fp16.", "no", "bf16", "fp16")
    compile: bool = setting(False, "Compile the model.")
    channels_last: bool = setting(False, "Keep images channels-last in memory.")
    in_memory: bool = setting(
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
    # a pretrained network of convolutions. Of SGD and AdamW at several rates, with batch norm in
    # training and in evaluation mode, what every loss has its best validation accuracy with, or
    # within a point of it: EfficientNet-Lite0 at 96 pixels, CIFAR-10 with 270 images of each class,
    # 4 epochs, 2,000 images to validate on, one seed. Softmax, the head alone 70.9%; AdamW 80.8,
    # with batch statistics 68.7, at ten times the rate 10, at a tenth 76.8; SGD at 0.002 79.1, at
    # 0.02 47.2
    epochs=10,
    batch_size=64,
    opt="adamw",
    lr=None,
    lr_base=4e-4,
    weight_decay=0.01,
    freeze_bn=True,
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

#: learning rate of fine-tuning for 256 images per update, by optimiser, and from which part and
#: which multiple of it on accuracy suffers: half of AdamW's costs up to 3 points on CIFAR-10, twice
#: it nothing, three times it softmax 5; with SGD the rate lies between one that was good and one
#: that was not
USUAL = {"sgd": (0.006, 1 / 3, 3), _FINETUNE.opt: (_FINETUNE.lr_base, 1 / 2, 3)}
LARGE_SHARE = 0.1  # of the weights that a moving average begins with, in what it ends as

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


def closest_recipe(recipe: dict[str, Any]) -> tuple[str, list[str]]:
    """The name of the recipe from which one differs least, and the fields in which it does.

    :param recipe: as JSON has it
    """
    differing = {}
    for name, named in RECIPES.items():
        values = json.loads(json.dumps(asdict(named)))
        differing[name] = [key for key in values if values[key] != recipe.get(key)]
    closest = min(differing, key=lambda name: len(differing[name]))
    return closest, differing[closest]


def check_recipe(recipe: Recipe) -> None:
    """Refuse values that no training can have, each alone and together.

    :raises InputError: naming the value and what it may be
    """
    check_settings(recipe)
    if len(recipe.scale) != 2 or recipe.scale[0] > recipe.scale[1]:
        raise InputError(f"scale is {recipe.scale}; expected two numbers, from and to")
    if list(recipe.decay_milestones) != sorted(set(recipe.decay_milestones)):
        raise InputError(f"decay_milestones are {recipe.decay_milestones}; expected them ascending")
    if recipe.sched == "multistep" and not recipe.decay_milestones:
        raise InputError("sched multistep takes decay_milestones, the epochs at which it decays")
    if recipe.decay_rate > 1 and recipe.sched in ("step", "multistep"):
        raise InputError(
            f"decay_rate is {recipe.decay_rate}, so that the learning rate would grow; expected a "
            f"number in (0, 1] with sched {recipe.sched}"
        )
    if recipe.warmup_epochs > recipe.epochs > 0:
        raise InputError(
            f"warmup_epochs is {recipe.warmup_epochs}, longer than the training of {recipe.epochs} "
            f"epochs; expected at most {recipe.epochs}"
        )
    if recipe.in_memory and recipe.augment == "timm":
        raise InputError("timm's augmentation works on files; with in_memory use pad-crop or none")
    if recipe.class_weights and recipe.balanced_sampling:
        raise InputError(
            "class_weights and balanced_sampling both make up for rare classes; give one of them"
        )


def doubts_of_recipe(recipe: Recipe, updates: int, starts_trained: bool) -> list[str]:
    """What will not be what was asked for, each with the way out; none if nothing is known to.

    :param updates: of all epochs together
    :param starts_trained: whether the backbone has been trained before
    """
    found = _doubts_of_rate(recipe, starts_trained) if recipe.epochs else []
    if recipe.ema_decay and recipe.ema_decay**updates > LARGE_SHARE:
        share, most = recipe.ema_decay**updates, LARGE_SHARE ** (1 / max(1, updates))
        found.append(
            f"ema_decay {recipe.ema_decay:g} alone would keep {share:.0%} of the initial weights "
            f"over {updates} updates; timm's warm-up makes it smaller, so that it averages over "
            f"fewer. For so few updates give at most {math.floor(1000 * most) / 1000:g}"
        )
    if recipe.freeze_bn and not starts_trained:
        found.append(
            "freeze_bn leaves an untrained network without batch norm; give the recipe scratch, or "
            "start from --pretrained or --weights"
        )
    late = [at for at in recipe.decay_milestones if at >= recipe.epochs]
    if recipe.sched == "multistep" and late:
        found.append(
            f"the learning rate does not decay at epoch {', '.join(map(str, late))}, since "
            f"training ends after {recipe.epochs}; give earlier decay_milestones"
        )
    return found


def recipe_named(name: str) -> Recipe:
    """
    :raises InputError: if there is none of this name
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def _doubts_of_rate(recipe: Recipe, starts_trained: bool) -> list[str]:
    """Of a recipe for pretrained networks on one that is not, and the other way round."""
    rate = learning_rate(recipe)
    if starts_trained and recipe.opt in USUAL:
        base, low, high = USUAL[recipe.opt]
        usual = learning_rate(replace(recipe, lr=None, lr_base=base))
        times = round(rate / usual, 6)
        if times >= high or times <= round(low, 6):
            above = times > 1
            how = f"{times:.3g} times" if above else f"{times:.2g} of"
            so = (
                "can undo what the network has learnt"
                if above
                else "teaches it little in few epochs"
            )
            return [
                f"the learning rate {rate:g} is {how} that of fine-tuning with {recipe.opt}, "
                f"{usual:g} for batches of {recipe.batch_size}, and {so}; give the recipe "
                f"finetune, or a {'lower' if above else 'higher'} rate"
            ]
    if starts_trained:
        return []
    if recipe.layer_decay is not None and recipe.layer_decay < 1:
        return [
            f"layer_decay {recipe.layer_decay:g} leaves the first layers nearly as they are, and "
            "those of an untrained network have learnt nothing; give the recipe scratch, or start "
            "from --pretrained or --weights"
        ]
    scratch = RECIPES["scratch"]
    if recipe.opt == scratch.opt:
        usual_rate = learning_rate(scratch) * recipe.batch_size / scratch.batch_size
        if rate <= usual_rate / 3:
            return [
                f"the learning rate {rate:g} is {rate / usual_rate:.2g} of what an untrained "
                f"network takes with {recipe.opt}, {usual_rate:g} for batches of "
                f"{recipe.batch_size}; give the recipe scratch, or start from --pretrained or "
                "--weights"
            ]
    return []
