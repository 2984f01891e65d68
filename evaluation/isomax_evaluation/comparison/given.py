"""The models that were given to a comparison, with names and seeds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isomax_adapters.timm.sources import model_folder_of, models_in
from isomax_evaluation.comparison.naming import named, unique_names
from isomax_evaluation.detection.opening import Given, Source
from isomax_evaluation.output.errors import InputError


def given_models(models: Mapping[str, Any] | Iterable[str]) -> list[Given]:
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
    found: list[Given] = []
    for name, source in spread:
        name = own[str(source)] if name is None else name
        seed = sum(given.name == name for given in found)
        found.append(Given(name, seed, str(source) if isinstance(source, Path) else source))
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
