"""Which of a model's classes a data set's classes are, by name."""

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from isomax_adapters.runtime.errors import InputError


def names_of_classes(model: Any) -> list[set[str]] | None:
    """All names that each class of a timm model goes by; ``None`` if the model does not say.

    They are the ``label_names`` and ``label_descriptions`` of its config, as model folders have
    them; else, of a model with as many classes as an ImageNet, synsets (``n01443537``) and words
    (``goldfish``).
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    labels = config.get("label_names")
    described = config.get("label_descriptions")
    subset = infer_imagenet_subset(model) if hasattr(model, "pretrained_cfg") else None
    if labels is None and subset is not None:
        info = ImageNetInfo(subset)
        labels, described = info.label_names(), info.label_descriptions(as_dict=True)
    if labels is None:
        return None
    texts = described if isinstance(described, dict) else {}
    return [
        {_alike(name) for name in [str(label), *str(texts.get(label, "")).split(", ")] if name}
        for label in labels
    ]


def match_classes(model: Any, num_classes: int, name: str, class_names: Sequence[str]) -> list[int]:
    """The place among a model's classes of each class of a data set.

    By name where the model has names, without regard to case and underscores; by number where it
    has none.

    :param model: a timm model, or any network
    :param num_classes: how many classes it has
    :param name: of the model, for messages
    :param class_names: of the data set
    :raises InputError: if a class is none of the model's, is several of them, or the model has no
        names and another number of classes
    """
    known = names_of_classes(model)
    if known is None:
        if num_classes != len(class_names):
            raise InputError(
                f"{name} has {num_classes} classes without names, the ID data "
                f"{len(class_names)} ({_some(class_names)}); give the data that it was trained on, "
                "or a model folder whose config.json has label_names"
            )
        return list(range(len(class_names)))
    places: dict[str, list[int]] = {}
    for place, names in enumerate(known):
        for one in names:
            places.setdefault(one, []).append(place)
    found = [places.get(_alike(class_name), []) for class_name in class_names]
    if unknown := [c for c, at in zip(class_names, found, strict=True) if not at]:
        raise InputError(
            f"{name} does not know {len(unknown)} of the {len(class_names)} ID classes: "
            f"{_some(unknown)}; it has {len(known)}, such as {_some([min(n) for n in known])}: "
            "rename the folders, leave those classes out, or give a model that was trained on them"
        )
    if several := [c for c, at in zip(class_names, found, strict=True) if len(at) > 1]:
        raise InputError(
            f"{_some(several)} could be more than one class of {name}; call the folder by its "
            "synset (n01443537) or its whole description"
        )
    chosen = [at[0] for at in found]
    if len(set(chosen)) < len(chosen):
        twice = [c for c, at in zip(class_names, chosen, strict=True) if chosen.count(at) > 1]
        raise InputError(f"{_some(twice)} are one class of {name}; put them in one folder")
    return chosen


def _alike(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
