"""Which of a model's classes a data set's classes are, by name."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from isomax_adapters.runtime.errors import InputError

_WORDNET = re.compile(r"(n\d{8})(?![0-9A-Za-z])")

Lookup = dict[str, list[int]]  # from a name to the places of the classes that it is of


def checked_names(class_names: Iterable[object], num_classes: int) -> list[str]:
    """Names of a model's classes, in the order of its logits.

    :raises InputError: if they are no list, not one for each class, or one is there twice
    """
    if isinstance(class_names, str):
        raise InputError(f"class_names is the text {class_names!r}; expected a list of names")
    names = list(map(str, class_names))
    if len(names) != num_classes:
        raise InputError(f"{len(names)} class names for {num_classes} classes")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{_some(twice)} are names of more than one class; give each its own")
    return names


def match_classes(
    model: Any,
    num_classes: int,
    name: str,
    class_names: Sequence[str],
    given: Sequence[str] | None = None,
) -> list[int] | None:
    """The place among a model's classes of each class of a data set, by name.

    A model's names are the ``label_names`` and ``label_descriptions`` of its config, as model
    folders have them; else those that are given; else, of a model with as many classes as an
    ImageNet, WordNet's. Names are exact. Only WordNet's, which nobody calls folders by to the
    letter, are found by what a folder's name begins with (``n01443537_goldfish``), and their words
    without regard to case and underscores.

    :param model: a timm model, or any network
    :param num_classes: how many classes it has
    :param name: of the model, for messages
    :param class_names: of the data set
    :param given: names of a model without any, in the order of its logits
    :return: ``None`` if the model has as many classes as the data set, and no names
    :raises InputError: if a class is none of the model's, is several of them, or the model has no
        names and another number of classes
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    labels, described = config.get("label_names"), config.get("label_descriptions")
    if labels is None and given is not None:
        labels, described = checked_names(given, num_classes), None
    guessed = infer_imagenet_subset(model) if labels is None and config else None
    if guessed is not None:
        info = ImageNetInfo(guessed)
        labels, described = info.label_names(), info.label_descriptions(as_dict=True)
    if labels is not None:
        labels = [_normal(str(label)) for label in labels]
        lookups = _lookups(labels, described if isinstance(described, dict) else {})
        found = [_places(_normal(one), lookups) for one in class_names]
        if any(found) or guessed is None or num_classes != len(class_names):
            return _chosen(found, name, class_names, labels, lookups)
    if num_classes != len(class_names):
        raise InputError(
            f"{name} has {num_classes} classes without names, the ID data {len(class_names)} "
            f"({_some(class_names)}); give the data that it was trained on, or its class names in "
            "the order of its logits (--class-names FILE, class_names in Python)"
        )
    return None


def _lookups(labels: Sequence[str], described: dict[str, str]) -> list[Lookup]:
    """The names of classes, the surest first: labels, whole descriptions, words of these."""
    whole = [[text] if (text := str(described.get(label, ""))) else [] for label in labels]
    words = [text[0].split(", ") if text else [] for text in whole]
    lookups = [_lookup([label] for label in labels), _lookup(whole), _lookup(words)]
    if any(map(_WORDNET.fullmatch, labels)):
        lookups += [_lookup([_alike(name) for name in one] for one in some)
                    for some in (whole, words)]  # fmt: skip
    return lookups


def _lookup(names: Iterable[Iterable[str]]) -> Lookup:
    places: Lookup = {}
    for place, some in enumerate(names):
        for name in some:
            places.setdefault(name, []).append(place)
    return places


def _places(name: str, lookups: Sequence[Lookup]) -> list[int]:
    synset = _WORDNET.match(name)
    spellings = [name, *([synset[1]] if synset else []), *([_alike(name)] if lookups[3:] else [])]
    return next((look[one] for look in lookups for one in spellings if one in look), [])


def _chosen(
    found: Sequence[Sequence[int]],
    name: str,
    class_names: Sequence[str],
    labels: Sequence[str],
    lookups: Sequence[Lookup],
) -> list[int]:
    if unknown := [c for c, at in zip(class_names, found, strict=True) if not at]:
        like = {_alike(label): label for label in labels}
        meant = [f"{like[_alike(c)]} for {c}" for c in unknown if _alike(c) in like]
        names = [*lookups[2]] or labels
        raise InputError(
            f"{name} does not know {len(unknown)} of the {len(class_names)} ID classes: "
            f"{_some(unknown)}; it has {len(labels)}, such as {_some(names)}"
            + (f" (did you mean {_some(meant)}?)" if meant else "")
            + ": rename the folders, leave those classes out, or give a model that was trained on "
            "them"
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


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # as folders' names are read


def _alike(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
