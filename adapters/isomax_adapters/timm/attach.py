"""Replace the classifier of a timm model by an IsoMax, IsoMax+ or DisMax head."""

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import nn

from isomax.heads import DisMaxHead, IsoMaxHead, IsoMaxPlusHead, _DistanceHead

HEADS: dict[str, type[_DistanceHead]] = {
    "isomax": IsoMaxHead,
    "isomax+": IsoMaxPlusHead,
    "dismax": DisMaxHead,
}
PREFIXES = {
    "isomax": "isomax_",
    "isomax+": "isomaxplus_",
    "dismax": "dismax_",
    "softmax": "softmax_",
}


def attach(
    model: nn.Module, head: str = "isomax", num_classes: int | None = None, drop_in: bool = False
) -> nn.Module:
    """Put a head in the place of a timm model's classifier, in place.

    Every leaf of the classifier (``nn.Linear`` or 1x1 ``nn.Conv2d``) is replaced: the one of most
    models, both of a distilled pair, each of an ensemble of classifiers. Everything else, and
    everything timm can do with a model, stays: ``reset_classifier(n)`` keeps the kind of head.

    :param model: a model from ``timm.create_model``
    :param head: ``isomax``, ``isomax+`` or ``dismax``
    :param num_classes: number of classes; the model's own if not given
    :param drop_in: logits carry the entropic scale while training, for loops that bring plain
        cross-entropy; otherwise train with :class:`isomax.IsoMaxLoss`
    :return: the same model
    :raises ValueError: if the head is unknown, the model has no classifier, or its number of
        classes is neither given nor known
    """
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}; choose one of {', '.join(HEADS)}")
    name = _architecture(model)
    if not hasattr(model, "get_classifier") or not hasattr(model, "reset_classifier"):
        raise ValueError(
            f"{name} has no classifier to replace (it is an encoder); choose a timm model with "
            "get_classifier() and reset_classifier()"
        )
    if num_classes is None:
        num_classes = model.num_classes
    if num_classes < 1:
        raise ValueError(f"{name} was created without classes; pass num_classes to attach()")
    if num_classes != model.num_classes or not list(_leaves(model)):
        model.reset_classifier(num_classes)
    if not list(_leaves(model)):
        raise ValueError(f"found no nn.Linear or 1x1 nn.Conv2d in the classifier of {name}")
    _replace_leaves(model, HEADS[head], drop_in)
    model._isomax_head = head
    model.reset_classifier = MethodType(_reset_classifier, model)
    # what save_model writes down, so that timm builds the same model again
    model.pretrained_cfg = dict(model.pretrained_cfg, architecture=PREFIXES[head] + name)
    model._model_args = dict(
        getattr(model, "_model_args", {}), num_classes=num_classes, drop_in=drop_in
    )
    return model


def head_of(model: nn.Module) -> str:
    """The kind of head a timm model has: ``softmax``, ``isomax``, ``isomax+`` or ``dismax``."""
    return getattr(model, "_isomax_head", "softmax")


def head_modules(model: nn.Module) -> list[_DistanceHead]:
    """The IsoMax heads of a model, most often one; empty for a model with a linear classifier."""
    return [module for module in model.modules() if isinstance(module, _DistanceHead)]


def _architecture(model: nn.Module) -> str:
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    for prefix in PREFIXES.values():
        name = name.removeprefix(prefix)
    return str(name)


def _reset_classifier(model: Any, num_classes: int, *args: Any, **kwargs: Any) -> None:
    """timm's own ``reset_classifier``, and then the same kind of head again."""
    head, drop_in = model._isomax_head, model._model_args["drop_in"]
    type(model).reset_classifier(model, num_classes, *args, **kwargs)
    model._model_args = dict(model._model_args, num_classes=num_classes)
    if num_classes > 0:
        _replace_leaves(model, HEADS[head], drop_in)


def _replace_leaves(model: nn.Module, head_class: type[_DistanceHead], drop_in: bool) -> None:
    for parent, name, leaf in list(_leaves(model)):
        width = leaf.in_channels if isinstance(leaf, nn.Conv2d) else leaf.in_features
        weight = leaf.prototypes if isinstance(leaf, _DistanceHead) else leaf.weight
        new = head_class(
            width, model.num_classes, drop_in, device=weight.device, dtype=weight.dtype
        )
        setattr(parent, name, new.train(leaf.training))


def _leaves(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The layers that give the logits, each with its parent and its name there."""
    classifier = model.get_classifier()
    roots = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    inside = {id(module) for root in roots for module in root.modules()}
    for parent in model.modules():
        found = [
            (parent, name, child)
            for name, child in parent.named_children()
            if id(child) in inside and _gives(child, model.num_classes)
        ]
        own = id(parent) in inside and not isinstance(parent, nn.ModuleList)
        # in a wrapper like an MLP only the last layer gives the logits
        yield from found[-1:] if own else found


def _gives(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.out_channels == num_classes
    return isinstance(module, (nn.Linear, _DistanceHead)) and module.out_features == num_classes
