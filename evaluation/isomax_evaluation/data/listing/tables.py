"""Labels from a table, and the positions of classes from a file."""

import csv
import os
import pickle
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from isomax_evaluation.data.listing.files import expanded
from isomax_evaluation.data.listing.folders import SPLIT_OF
from isomax_evaluation.data.listing.listing import Entry, LeavingOut, Scan, listings
from isomax_evaluation.output.errors import InputError, first_few

_DELIMITERS = (",", ";", "\t", "|", " ")
_COLUMNS = {  # and what they are called elsewhere
    "path": ("path", "filepath", "file", "filename", "image", "imagepath", "img", "imgpath"),
    "label": ("label", "class", "classname", "target", "category"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group",),
}
_SHOWN = 5
_UNMAPPED = "row of a class that the class map does not name"

Row = tuple[int, list[str]]  # where it ends in the file, and its cells


def read_labels(
    path: str | os.PathLike[str],
    class_map: Mapping[str, int] | None = None,
    group_by: str | None = None,
    skip_bad: bool = False,
) -> Scan:
    """The labelled images that a table lists.

    A row has the path of a file, relative to the table's folder, and its label; columns for split
    and group are optional. The first row names the columns; if it names a file instead, they come
    in this order. Cells are separated by commas, semicolons, tabs, bars or blanks.

    :param class_map: the position of each class, as :func:`load_class_map` gives it; rows of others
        are left out
    :param group_by: the column of the groups, if not ``group``
    :param skip_bad: leave rows out that cannot be used, rather than refuse the table
    :raises InputError: if the columns are not there, a row cannot be used (its file is missing, a
        cell is empty, its split unknown, its file listed before), none can, or a split has a class
        that ``train`` has not
    """
    path = expanded(path)
    root = os.path.dirname(path) or os.curdir
    columns, rows = _table(path, root, group_by)
    beside = LeavingOut()
    found: dict[str, list[Entry]] = {}
    lines: dict[str, int] = {}
    bad: list[str] = []
    for line, cells in rows:
        read = _read_row(root, cells, columns)
        if not isinstance(read, str) and (first := lines.setdefault(read[1].name, line)) != line:
            read = f"{read[1].name} is in line {first} already"
        if isinstance(read, str):
            bad.append(f"line {line}: {read}")
        elif class_map is not None and read[1].label not in class_map:
            beside.add(_UNMAPPED, f"line {line}: {read[1].label}")
        else:
            found.setdefault(read[0], []).append(read[1])
    if bad and not (skip_bad and found):
        shown = "; ".join(bad[:_SHOWN]) + "; ..." * (len(bad) > _SHOWN)
        raise InputError(f"{len(bad)} of {len(rows)} rows of {path} cannot be used: {shown}")
    if not found:
        of_others = class_map and beside.has(_UNMAPPED)
        named = f"; the class map names {first_few(list(class_map or ()), 3)}: give that of these"
        raise InputError(f"{path} lists no images{beside}{named if of_others else ''}")
    for reason in bad:
        beside.add("row that cannot be used", reason)
    found = {split: found[split] for split in (*SPLIT_OF.values(), "all") if split in found}
    return Scan(listings(root, found, class_map, {}), beside.listed())


def load_class_map(path: str | os.PathLike[str]) -> dict[str, int]:
    """timm's class map: the position of each class.

    :param path: a text file with a class on each line, or a pickled ``dict``; nothing but such a
        dict of names and numbers is unpickled
    :raises InputError: if it is neither, or a class is there twice
    """
    path = expanded(path)
    if os.path.splitext(path)[1].lower() == ".pkl":
        with open(path, "rb") as file:
            try:
                content = _PlainUnpickler(file).load()
            except Exception as error:  # pickle raises whatever it pleases
                raise InputError(f"{path} is no pickled class map: {error}") from error
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and type(at) is int for name, at in content.items()
        ):
            raise InputError(f"{path} holds no dict of class names and their positions")
        names = content
    else:
        lines = [line.strip() for line in _text(path).rstrip().split("\n")]
        names = {name: at for at, name in enumerate(lines)}
        if "" in names or len(names) < len(lines):
            repeated = sorted({name for name in lines if lines.count(name) > 1 or not name})
            raise InputError(f"{path} has empty lines or classes twice: {repeated[:_SHOWN]}")
    return {unicodedata.normalize("NFC", name): at for name, at in names.items()}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _table(path: str, root: str, group_by: str | None) -> tuple[dict[str, int], list[Row]]:
    """The place of each column, and the rows below their names."""
    lines = _text(path).split("\n")
    first = next((line for line in lines if line.strip()), "")
    for delimiter in _DELIMITERS:
        header = next(csv.reader([first], delimiter=delimiter))
        columns = _named(header, group_by)
        if "path" in columns and "label" in columns:
            if group_by and "group" not in columns:
                raise InputError(f"{path} has no column {group_by!r}; it has {', '.join(header)}")
            return columns, _rows(lines, delimiter)[1:]
        if len(header) > 1 and _file(root, header[0]):
            if group_by:
                raise InputError(f"{path} does not name its columns, so none is {group_by!r}")
            return dict(zip(_COLUMNS, range(len(header)), strict=False)), _rows(lines, delimiter)
    raise InputError(
        f"{path} begins with {first[:80]!r}, which is neither the names of columns, path and label "
        "among them, nor a file that there is and its label; a path may be called "
        f"{', '.join(_COLUMNS['path'])}, a label {', '.join(_COLUMNS['label'])}"
    )


def _named(header: list[str], group_by: str | None) -> dict[str, int]:
    plain = [name.strip().lower().replace("_", "").replace(" ", "") for name in header]
    columns = {}
    for column, names in _COLUMNS.items():
        places = [at for name in names for at, found in enumerate(plain) if found == name]
        if column == "group" and group_by is not None:
            places = [at for at, name in enumerate(header) if name.strip() == group_by]
        if places:
            columns[column] = places[0]
    return columns


def _rows(lines: list[str], delimiter: str) -> list[Row]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]


def _read_row(root: str, cells: list[str], columns: Mapping[str, int]) -> tuple[str, Entry] | str:
    """Split and entry; or what is wrong with the row."""
    cell = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
    for name, value in cell.items():
        if not value:
            return f"no {name}"
    file = _file(root, cell["path"])
    if not file:
        return f"there is no file {cell['path']}"
    split = SPLIT_OF.get(cell["split"].lower(), "") if "split" in cell else "all"
    if not split:
        return f"the split is {cell['split']!r}; expected train, val or test"
    label = unicodedata.normalize("NFC", cell["label"])
    return split, Entry(label, file, cell.get("group"))


def _file(root: str, given: str) -> str:
    """The name of a file relative to the root; empty if there is none."""
    for name in dict.fromkeys((given, given.replace("\\", "/"))):  # as Windows writes it
        path = os.path.join(root, expanded(name))
        if os.path.isfile(path):
            name = os.path.relpath(path, root) if os.path.isabs(name) else os.path.normpath(name)
            return name.replace(os.sep, "/")
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8: {error}; save it as such") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
