"""Files that are there whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from isomax_evaluation.output.errors import InputError

#: Text on disk is UTF-8, whatever the locale; names of files in other bytes come back as they were.
TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape"}


def as_list(given: Any) -> list[Any]:
    """What is given, one by one; a text or path where a list is meant is a list of one."""
    return [given] if isinstance(given, (str, Path)) else list(given)


def as_text(name: str) -> str:
    """What the file system or the command line calls something, as text: UTF-8 whatever the locale;
    bytes that are none are escaped."""
    return name.encode(**TEXT).decode("utf-8", "backslashreplace")


def as_path(text: str) -> str:
    """A path that was read from a file of text, as the file system's functions take it here."""
    return os.fsdecode(text.encode(**TEXT))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make the file under another name, then move it into place: that of the file
    that a symbolic link leads to.

    :raises InputError: if it cannot be written (a full disk); an older file is kept then
    """
    path = Path(os.path.realpath(path))
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
    write_whole(path, lambda partial: partial.write_text(text, **TEXT))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line, whole or not at all."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(path, lambda partial: partial.write_text(text, **TEXT))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of such a file; none if it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(**TEXT).splitlines()]


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(**TEXT))


def file_name(name: str) -> str:
    """A file's name that tells any text from any other."""
    quoted = quote(name, safe="")
    if len(quoted) > 200:  # file systems take 255 bytes
        quoted = f"{quoted[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return quoted


def check_target(path: Path) -> None:
    """Refuse a place that no file can be written to, before the work that it is to hold.

    :raises InputError: naming what is in the way
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the name of the file to write")
    place = next(
        parent for parent in Path(os.path.realpath(path)).parents if os.path.lexists(parent)
    )
    if not os.path.isdir(place):
        raise InputError(f"{path} lies below {place}, which is no folder")
    if not os.access(place, os.W_OK):
        raise InputError(f"{path} cannot be written: {place} may only be read")
