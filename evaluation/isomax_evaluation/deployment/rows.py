"""Rows of scores in a file: written one by one, read back, freed of those that later ones replace.

Text is UTF-8, and lines end in a newline character. Cells of a CSV file are what they stand for: a
file called ``=1+2.png`` is in it by that name, which a spreadsheet has to be told is text.

Imports neither torch nor pandas.
"""

import csv
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from isomax_evaluation.output.errors import InputError

STATE = ("size", "modified_ns")
#: column -> what it means
MEANINGS = {
    "source": "the image's path, as it was given",
    "label": "the class's number, in the order of the model's classes; empty if there is an error",
    "class_name": "the class; empty if there is an error, like the next three",
    "confidence": "calibrated probability of the class",
    "score": "outlier score, larger is more OOD",
    "p_value": "conformal p-value; of known images at most a share alpha have one of alpha or less",
    "is_ood": "whether the image is rejected; true if there is an error",
    "error": "why the image could not be scored; empty if it was",
    "size": "of the file in bytes, when it was scored",
    "modified_ns": "time of its last change, nanoseconds since 1970, when it was scored",
}
COLUMNS = tuple(MEANINGS)
HEADER = ",".join(COLUMNS) + "\n"

Row = dict[str, Any]


class Index:
    """Which row of a file counts for each image: the last one. On disk, so that memory does not
    grow with the number of rows."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")
        self._rows.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, state TEXT, failed, place)")

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.close()

    def put(self, key: str, state: str, failed: bool, place: int) -> None:
        """A row, in the place of those before it of the same image."""
        values = (key, state, failed, place)
        self._rows.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", values)

    def get(self, key: str) -> tuple[str, bool] | None:
        """State and failure of an image's row; ``None`` if it has none."""
        found = self._rows.execute("SELECT state, failed FROM rows WHERE key = ?", (key,))
        row = found.fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def counts(self) -> tuple[int, int]:
        """How many images have a row, and of how many it is an error."""
        found = self._rows.execute("SELECT COUNT(*), COALESCE(SUM(failed), 0) FROM rows")
        total, failed = found.fetchone()
        return total, failed

    def places(self) -> Iterator[int]:
        """Of the rows that count, ascending."""
        for (place,) in self._rows.execute("SELECT place FROM rows ORDER BY place"):
            yield place


def begin(file: io.RawIOBase, suffix: str) -> None:
    """What stands above the rows of a new file."""
    if suffix == ".csv":
        _write_all(file, HEADER)


def write(file: io.RawIOBase, suffix: str, row: Row) -> None:
    """Add a row, so that it is in the file."""
    if suffix == ".csv":
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row.values())
        _write_all(file, line.getvalue())
    else:
        _write_all(file, json.dumps(row, allow_nan=False) + "\n")


def _write_all(file: io.RawIOBase, text: str) -> None:
    # not through a buffer, which would try again, and fail again, when it is closed
    content = text.encode()
    while content:
        content = content[file.write(content) :]


def state_of(row: Row) -> str:
    """What a file was when it was scored; of one that was not there, nothing."""
    return "/".join("" if row[name] is None else str(row[name]) for name in STATE)


def read_back(path: Path, out: Path, key_of: Callable[[str], str], index: Index) -> int:
    """Take the rows of an earlier run into an index, cut off one that was not finished, and take
    away those that later ones have replaced.

    :param out: how the file is called in messages
    :param key_of: what an image is known by, from the name in its row
    :return: how many rows there are then
    :raises InputError: if it holds anything else
    """
    if not path.exists():
        return 0
    place = whole = 0
    try:
        with path.open("rb") as file:
            for row, end in _rows(path.suffix, file):
                whole = end
                if row is not None:
                    index.put(key_of(row["source"]), state_of(row), bool(row["error"]), place)
                    place += 1
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{out} is there already and holds no scores of this version; choose another file"
        ) from error
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    total, _ = index.counts()
    if total < place:
        compact(path, index)
    return total


def compact(path: Path, index: Index) -> None:
    """Take away the rows that later ones have replaced. The file is whole at any time."""
    partial = path.with_name(f".{path.name}.partial")
    wanted, place, start = index.places(), 0, 0
    following = next(wanted, None)
    with path.open("rb") as file, path.open("rb") as source, partial.open("wb") as target:
        for row, end in _rows(path.suffix, file):
            if row is None or place == following:
                source.seek(start)
                target.write(source.read(end - start))
                following = following if row is None else next(wanted, None)
            place += row is not None
            start = end
    partial.replace(path)


def _rows(suffix: str, file: BinaryIO) -> Iterator[tuple[Row | None, int]]:
    """Each whole row and where it ends; ``None`` for the header.

    :raises ValueError: if it is no table of ours
    """
    yield from _csv_rows(file) if suffix == ".csv" else _json_rows(file)


def _csv_rows(file: BinaryIO) -> Iterator[tuple[Row | None, int]]:
    end, line = 0, b""

    def lines() -> Iterator[str]:
        nonlocal end, line
        for line in file:
            end += len(line)
            yield line.decode("utf-8", "replace")

    header = next(lines(), "")
    if header != HEADER:
        if HEADER.startswith(header):  # cut off
            return
        raise ValueError("another header")
    yield None, end
    table = csv.reader(lines())
    for values in table:
        if len(values) == len(COLUMNS) and line.endswith(b"\n"):
            yield dict(zip(COLUMNS, values, strict=True)), end
        elif next(table, None):
            raise ValueError("another number of columns")


def _json_rows(file: BinaryIO) -> Iterator[tuple[Row, int]]:
    end, start = 0, b'{"source": "'
    for line in file:
        if not line.endswith(b"\n"):  # cut off
            if line[: len(start)] != start[: len(line)]:
                raise ValueError("no row of ours")
            return
        row = json.loads(line)
        if not isinstance(row, dict) or tuple(row) != COLUMNS:
            raise ValueError("no row of ours")
        end += len(line)
        yield row, end


def to_parquet(rows: Path, out: Path) -> None:
    """A parquet file of rows of JSON, whole or as it was before."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {"label": pa.int64(), "is_ood": pa.bool_()} | dict.fromkeys(STATE, pa.int64())
    types |= dict.fromkeys(("confidence", "score", "p_value"), pa.float64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    partial = _partial(out)
    with rows.open(encoding="utf-8") as file, parquet.ParquetWriter(partial, schema) as writer:
        for first in file:
            lines = chain([first], islice(file, 9_999))
            content = [json.loads(line) for line in lines]
            writer.write_table(pa.Table.from_pylist(content, schema=schema))
    partial.replace(out)


def from_parquet(out: Path, rows: Path) -> None:
    """The rows of a finished file.

    :raises InputError: if it is no table of ours
    """
    from pyarrow import parquet

    partial = _partial(out)
    try:
        with parquet.ParquetFile(out) as table, partial.open("w", encoding="utf-8") as file:
            if tuple(table.schema_arrow.names) != COLUMNS:
                raise ValueError("other columns")
            for batch in table.iter_batches(10_000):
                file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    except ValueError as error:  # pyarrow's own are of it
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{out} is there already and holds no scores of this version; choose another file"
        ) from error
    partial.replace(rows)


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")
