"""Files that are there whole or not at all, and folders that belong to one run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isomax_evaluation.output.errors import InputError, first_few


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make the file under another name, then move it into place.

    :raises InputError: if it cannot be written (a full disk); an older file is kept then
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = "; the older one is intact" if path.exists() else ""
        raise InputError(
            f"could not write {path}: {error}{kept}; make room and run the same command again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    text = json.dumps(content, indent=1)
    write_whole(path, lambda partial: partial.write_text(text))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line, whole or not at all."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(path, lambda partial: partial.write_text(text))


def run_folder(output: Path, loss: str, seed: int) -> Path:
    """Where a comparison keeps one trained model and its scores."""
    return output / "runs" / f"{loss.replace('+', 'plus')}-seed{seed}"


def claim_folder(folder: Path, settings: dict[str, Any], name: str = "settings.json") -> None:
    """Make a folder that of one run, or find that it is; only then may files go into it.

    :param settings: everything that tells this run from another, as JSON
    :raises InputError: if the folder holds another run, or something else
    """
    settings = json.loads(json.dumps(settings))
    path = folder / name
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}; choose another folder") from error
        if differences := _differences(found, settings):
            raise InputError(
                f"{folder} holds another run ({first_few(differences, 4)}); choose another output "
                "folder, or give the settings of that run to go on with it"
            )
    elif folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise InputError(
            f"{folder} is there already and holds no run of isomax; choose another output folder"
        )
    else:
        write_json(path, settings)


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
