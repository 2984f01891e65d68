"""Replace the classifier of a timm model by an IsoMax, IsoMax+ or DisMax head."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isomax.heads import HEADS, DistanceHead
from isomax_adapters.runtime.errors import InputError

TimmModel = Any
"""A timm model: an ``nn.Module`` with attributes that the type does not know."""


def attach(
    model: TimmModel, head: str = "isomax", num_classes: int | None = None, drop_in: bool = False
) -> TimmModel:
    """Put a head in the place of a timm model's classifier, in place.

    Every layer whose width is the number of classes is replaced: the one linear layer or 1x1
    convolution of most models, both of a distilled pair, each of an ensemble, VOLO's auxiliary
    head. Everything else, and everything timm can do with a model, stays: pretrained layers before
    the last, ``forward_head(pre_logits=True)``, ``reset_classifier(n)``, which keeps the kind of
    head, and the rest.

    :param model: a model from ``timm.create_model``
    :param head: ``isomax``, ``isomax+``, ``dismax``, or one that was registered
        (:func:`~isomax_adapters.timm.register_head`)
    :param num_classes: number of classes; the model's own if not given. 0 leaves the model without
        a classifier, until ``reset_classifier(n)`` gives it this kind of head.
    :param drop_in: logits carry the entropic scale while training, for loops that bring plain
        cross-entropy; otherwise train with :class:`isomax.IsoMaxLoss`
    :return: the same model
    :raises InputError: if the head is unknown, the model is of a kind without classifiers, or its
        number of classes is neither given nor known
    """
    if head not in HEADS:
        raise InputError(f"unknown head {head!r}; choose one of {', '.join(HEADS)}")
    name = _architecture(model)
    if not hasattr(model, "get_classifier") or not hasattr(model, "reset_classifier"):
        raise InputError(
            f"{name} has no classifier to replace (it is an encoder); choose a timm model with "
            "get_classifier() and reset_classifier()"
        )
    if num_classes is None:
        num_classes = model.num_classes
        if num_classes < 1:
            raise InputError(f"{name} was created without classes; pass num_classes to attach()")
    if num_classes != model.num_classes:
        type(model).reset_classifier(model, num_classes)
    if num_classes > 0:
        _replace(model, HEADS[head], drop_in)
    model._isomax_head = head
    model.reset_classifier = partial(_reset_classifier, model)
    # what save_model writes down, so that timm builds the same model again
    name_model(model, HEADS[head].prefix + name)
    model._model_args = dict(
        getattr(model, "_model_args", {}), num_classes=num_classes, drop_in=drop_in
    )
    return model


def name_model(model: TimmModel, architecture: str) -> None:
    """Have a timm model call itself by another of its registered names."""
    model.pretrained_cfg = dict(model.pretrained_cfg, architecture=architecture)
    model.default_cfg = model.pretrained_cfg  # an alias, in timm as well


def head_of(model: nn.Module) -> str:
    """The kind of head a timm model has: ``softmax``, or a name in ``HEADS``."""
    return getattr(model, "_isomax_head", "softmax")


def prefixes() -> dict[str, str]:
    """What models' names in timm's registry begin with, by kind of head."""
    return {name: head.prefix for name, head in HEADS.items()} | {"softmax": "softmax_"}


def head_named(architecture: str) -> str:
    """The kind of head that models of a registered name have."""
    return next(
        (h for h, prefix in prefixes().items() if architecture.startswith(prefix)), "softmax"
    )


def head_modules(model: nn.Module) -> list[DistanceHead]:
    """The IsoMax heads of a model, most often one; empty for a model with a linear classifier."""
    return [module for module in model.modules() if isinstance(module, DistanceHead)]


def classifier_names(model: TimmModel) -> list[str]:
    """Names of the layers that give a timm model's logits, in the order of its modules.

    Found by what they are: a weightless copy of the model is asked for a number of classes that
    no layer has, and the layers that then have this width are the ones. So are layers of the
    classifier that timm takes away when asked (the distilled half of RepViT's).

    :raises InputError: if there are none
    """
    weightless = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    with _CopiesToMeta():
        twin = copy.deepcopy(model, memo=dict(weightless))
    widths = {_width(module) for module in model.modules()}
    probe = next(number for number in range(7, 10_000) if number not in widths)
    with torch.device("meta"):
        type(twin).reset_classifier(twin, probe)
    found = {name for name, module in twin.named_modules() if _width(module) == probe}
    parents = {name.rpartition(".")[0] for name in found}
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    inside = {id(module) for part in parts for module in part.modules()}
    names = []
    for name, module in model.named_modules():
        # beside a layer that was found stands the hidden layer of an MLP
        alone = name.rpartition(".")[0] not in parents
        taken = id(module) in inside and alone and _width(module) == model.num_classes > 0
        if name in found or taken:
            names.append(name)
    if not names:
        raise InputError(
            f"{_architecture(model)} makes no nn.Linear or 1x1 nn.Conv2d for its classes"
        )
    return names


class _CopiesToMeta(TorchFunctionMode):
    """Tensors are copied without their content; also those that a model keeps from a forward pass,
    which ``copy.deepcopy`` refuses if they have a gradient function."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0].detach().to("meta")
        return func(*args, **(kwargs or {}))


def _width(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return int(module.out_channels)
    return int(module.out_features) if isinstance(module, (nn.Linear, DistanceHead)) else 0


def _architecture(model: nn.Module) -> str:
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    for prefix in prefixes().values():
        name = name.removeprefix(prefix)
    return str(name)


def _reset_classifier(model: TimmModel, num_classes: int, *args: Any, **kwargs: Any) -> None:
    """timm's own ``reset_classifier``, and then the same kind of head again."""
    head, drop_in = model._isomax_head, model._model_args["drop_in"]
    type(model).reset_classifier(model, num_classes, *args, **kwargs)
    model._model_args = dict(model._model_args, num_classes=num_classes)
    if num_classes > 0:
        _replace(model, HEADS[head], drop_in)


def _replace(model: TimmModel, head_class: type[DistanceHead], drop_in: bool) -> None:
    for name in classifier_names(model):
        old: Any = model.get_submodule(name)
        width = old.in_channels if isinstance(old, nn.Conv2d) else old.in_features
        like = next(old.parameters())
        new = head_class(width, _width(old), drop_in, device=like.device, dtype=like.dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.train(old.training))
        while parent:
            _keep_unfused(model.get_submodule(parent))
            parent = parent.rpartition(".")[0]


def _keep_unfused(module: Any) -> None:
    # reparameterize_model() would fold what is around the head into its weights, as if it were
    # linear; a batch norm before a distance cannot be folded into it
    if hasattr(module, "fuse"):
        module.fuse = partial(_itself, module)


def _itself(module: nn.Module) -> nn.Module:
    return module
