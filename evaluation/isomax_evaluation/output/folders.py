"""Folders that belong to one run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isomax_evaluation.output.errors import InputError, first_few
from isomax_evaluation.output.files import file_name, read_json, write_json

SETTINGS = "settings.json"


def run_folder(output: Path, name: str, seed: int) -> Path:
    """Where a comparison keeps one model and its scores."""
    return output / "runs" / f"{file_name(name.replace('+', 'plus'))}-seed{seed}"


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What a folder is of; ``None`` if it belongs to no run.

    :raises InputError: if that is damaged
    """
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; choose another folder") from error
    return found


def check_folder(
    folder: Path,
    settings: dict[str, Any],
    begun: Callable[[Path], bool] = lambda folder: True,
) -> None:
    """Refuse a folder that is not to be that of a run.

    :param settings: everything that tells this run from another, as JSON
    :param begun: whether the run that a folder holds has anything to show; one that has nothing
        makes way
    :raises InputError: if the folder holds another run, or something else
    """
    found = read_settings(folder)
    if found is not None:
        differences = _differences(found, json.loads(json.dumps(settings)))
        if differences and begun(folder):
            raise InputError(
                f"{folder} holds another run ({first_few(differences, 4)}); choose another output "
                "folder, or give the settings of that run to go on with it"
            )
    elif folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise InputError(
            f"{folder} is there already and holds no run of isomax; choose another output folder"
        )


def claim_folder(
    folder: Path,
    settings: dict[str, Any],
    begun: Callable[[Path], bool] = lambda folder: True,
) -> None:
    """Make a folder that of a run, if :func:`check_folder` lets it; only then may files go into
    it."""
    check_folder(folder, settings, begun)
    if read_settings(folder) != json.loads(json.dumps(settings)):
        write_json(folder / SETTINGS, settings)


def check_outside(output: Path, *sources: Any) -> None:
    """A new output folder lies in none of what is read: its plots would be images the next time.

    :param sources: folders; names and data sets in memory are none
    :raises InputError: if it does
    """
    for source in sources:
        folder = Path(os.path.expanduser(source)) if isinstance(source, (str, Path)) else None
        if folder is None or not folder.is_dir() or read_settings(output) is not None:
            continue
        if output.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"the output folder {output} lies in {source}, so that what is written would be "
                "read as data the next time; choose one outside of it"
            )


def _is_foreign(path: Path) -> bool:
    # a run killed at its very start leaves a file half written, or an empty subfolder
    return not (path.name.endswith(".partial") or (path.is_dir() and not any(path.iterdir())))


def _differences(found: Any, given: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(given, dict):
        return [
            difference
            for key in sorted({*found, *given})
            for difference in _differences(
                found.get(key), given.get(key), f"{where}.{key}" if where else key
            )
        ]
    return [] if found == given else [f"{where}: {found!r} there, {given!r} given"]


def resolved(source: str) -> str:
    """A file or folder by its whole path, the same in every working directory; anything else as it
    is."""
    path = Path(os.path.expanduser(source))
    return str(path.resolve()) if path.exists() else source


def identity(source: str) -> str:
    """What all ways to name one folder, file or data set have in common."""
    path = Path(os.path.expanduser(source))
    return str(path.resolve()) if path.exists() else source.rpartition("/")[2].lower()
