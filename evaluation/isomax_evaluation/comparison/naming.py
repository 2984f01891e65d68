"""Short names for folders and models that are told apart by them."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import as_list, as_text


def split_name(text: str) -> tuple[str | None, str]:
    """``NAME=SOURCE`` in its two parts; ``None`` and the text if it has no name.

    A text that is a file or folder as it stands has none.
    """
    name, equals, source = text.partition("=")
    if not equals or not name or "/" in name or Path(os.path.expanduser(text)).exists():
        return None, text
    return as_text(name), source


def named(given: Any, what: str) -> list[tuple[str | None, Any]]:
    """What was given as a dictionary of names, or as texts, which may have one.

    :raises InputError: if it is neither
    """
    if isinstance(given, Mapping):
        return [(str(name), source) for name, source in given.items()]
    way_out = "expected a list of texts, or a dictionary that names each: {'NAME': ...}"
    if isinstance(given, (str, Path)):
        given = as_list(given)
    if not isinstance(given, Collection):
        raise InputError(f"{what} is one {type(given).__name__}; {way_out}")
    if odd := [one for one in given if not isinstance(one, (str, os.PathLike))]:
        raise InputError(f"{what} has a {type(odd[0]).__name__} without a name; {way_out}")
    return [split_name(os.fspath(one)) for one in given]


def unique_names(sources: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """A name for each source: of a folder as many of its last parts as tell it from the others; of
    anything else what it is called.

    :param taken: names that others have already
    """
    parts = [_parts(source) for source in sources]
    names = []
    for source, mine in zip(sources, parts, strict=True):
        others = [p for s, p in zip(sources, parts, strict=True) if s != source]
        length = 1
        while length < len(mine) and (
            any(mine[-length:] == other[-length:] for other in others)
            or "/".join(mine[-length:]) in taken
        ):
            length += 1
        names.append("/".join(mine[-length:]))
    return names


def no_doubles(what: str, names: Sequence[str]) -> None:
    """
    :raises InputError: if a name occurs twice
    """
    if doubles := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(
            f"{', '.join(doubles)} occurs twice among the {what}; tell them apart by NAME=SOURCE"
        )


def _parts(source: str) -> list[str]:
    path = Path(os.path.expanduser(source))
    if path.exists():
        return [as_text(part) for part in path.resolve().parts if part != path.anchor]
    return [source.rpartition("/")[2] or source]
