"""What was given to a comparison, with names that tell it apart."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isomax_adapters.timm.sources import model_folder_of, models_in
from isomax_evaluation.detection.opening import GivenModel, Source
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


def given_models(models: Mapping[str, Any] | Iterable[str]) -> list[GivenModel]:
    """The models that were given, with names and seeds.

    :param models: texts, ``NAME=SOURCE`` or just ``SOURCE``, where sources of one name are its
        seeds; or a dictionary of names with a source, or several sources, each. A folder of models
        is all of them.
    :raises InputError: if something given is no model
    """
    listed: list[tuple[str | None, Source]] = [
        (name, source)
        for name, sources in named(models, "models")
        for source in (sources if isinstance(sources, (list, tuple)) else [sources])
    ]
    for name, source in listed:
        if not isinstance(source, Source):
            raise InputError(
                f"the model {name} is {type(source).__name__}; expected a text that says where it "
                "is, a timm model, or Parts of another network"
            )
    spread: list[tuple[str | None, Source]] = []
    for name, source in listed:
        if isinstance(source, (str, Path)) and model_folder_of(str(source)) is None:
            inside: list[Source] = list(map(str, models_in(str(source))))
            spread += [(name, one) for one in inside or [source]]
        else:
            spread.append((name, source))
    unnamed = [str(source) for name, source in spread if name is None]
    own = dict(zip(unnamed, unique_names([_place(s) for s in unnamed]), strict=True))
    found: list[GivenModel] = []
    for name, source in spread:
        name = own[str(source)] if name is None else name
        seed = sum(given.name == name for given in found)
        found.append(GivenModel(name, seed, str(source) if isinstance(source, Path) else source))
    return found


def _place(source: str) -> str:
    """What a source without a name is called after."""
    architecture, at, file = source.partition("@")
    if at:
        return f"{architecture}@{Path(file).stem}"
    if source.startswith(("hf-hub:", "hf_hub:")):
        return source.rpartition("/")[2]
    folder = model_folder_of(source)
    if folder is None:
        return source
    # what isomax train writes is called after the output folder
    return str(folder.parent if folder.name == "model" else folder)


def _parts(source: str) -> list[str]:
    path = Path(os.path.expanduser(source))
    if path.exists():
        return [as_text(part) for part in path.resolve().parts if part != path.anchor]
    return [source.rpartition("/")[2] or source]
