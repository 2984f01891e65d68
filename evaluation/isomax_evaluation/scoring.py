"""Scores of many images into a file: a row for each, on disk as soon as it is made.

Imports neither torch nor pandas.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from isomax_adapters.onnx.runtime import Result, Scorer
from isomax_evaluation.errors import InputError

COLUMNS = tuple(field.name for field in fields(Result))
FORMATS = (".csv", ".jsonl", ".parquet")


def score_to_file(
    scorer: Scorer, inputs: Iterable[str], out: Path, advance: Callable[[int], None]
) -> tuple[int, int]:
    """Score images into a table with one row per input, in order.

    Rows are written as they are made. A file left by an interrupted run is continued: its rows
    are kept, as long as they are of the same inputs. A parquet file is written at the end, from
    rows collected in a ``.jsonl`` file beside it.

    :param inputs: paths
    :param out: a ``.csv``, ``.jsonl`` or ``.parquet`` file
    :param advance: called with the number of rows done since the last call
    :return: number of rows and how many of them have an error
    :raises InputError: if the file holds something else, or its ending is unknown
    """
    if out.suffix not in FORMATS:
        raise InputError(f"{out} does not end in {', '.join(FORMATS)}, so its format is unknown")
    if out.suffix == ".parquet":
        rows = out.with_name(f".{out.name}.rows.jsonl")
        if out.exists() and not rows.exists():
            raise InputError(f"{out} is there already; choose another file")
        counts = score_to_file(scorer, inputs, rows, advance)
        _to_parquet(rows, out)
        rows.unlink()
        return counts
    remaining = iter(inputs)
    total, failed = _read_back(out, remaining)
    advance(total)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", newline="", encoding="utf-8") as file:
        if out.suffix == ".csv" and not file.tell():
            csv.writer(file).writerow(COLUMNS)
        for batch in _batches(scorer.stream(remaining), 16):
            for result in batch:
                _write(file, out.suffix, _row(result))
                failed += bool(result.error)
            file.flush()
            total += len(batch)
            advance(len(batch))
    return total, failed


def _row(result: Result) -> dict[str, Any]:
    row = asdict(result) | {"source": _name(result.source)}
    if result.error:  # nothing is known of it
        row |= {"label": None, "class_name": None, "confidence": None, "score": None}
    return row


def _name(source: str) -> str:
    # file names need not be text
    return source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _batches(results: Iterator[Result], size: int) -> Iterator[list[Result]]:
    for first in results:
        yield [first, *islice(results, size - 1)]


def _write(file: TextIO, suffix: str, row: dict[str, Any]) -> None:
    if suffix == ".csv":
        csv.writer(file).writerow(row.values())
    else:
        file.write(json.dumps(row) + "\n")


def _read_back(out: Path, inputs: Iterator[str]) -> tuple[int, int]:
    """Rows of an earlier run, and how many have an error; ``inputs`` is then at the next one.

    A row cut off in the middle is taken away. Memory does not grow with the number of rows.
    """
    if not out.exists():
        return 0, 0
    total = failed = kept = 0
    with out.open("rb") as file:
        try:
            for row, end in (_csv_rows if out.suffix == ".csv" else _json_rows)(file):
                kept = end
                if row is None:
                    continue
                source = next(inputs, None)
                if source is None or row["source"] != _name(source):
                    expected = "has no more" if source is None else f"is {source!r}"
                    raise InputError(
                        f"{out} is of other images: row {total + 1} is of {row['source']!r}, this "
                        f"run's {expected}; choose another file"
                    )
                total += 1
                failed += bool(row["error"])
        except (ValueError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{out} is there already and holds no scores; choose another file"
            ) from error
    os.truncate(out, kept)
    return total, failed


def _csv_rows(file: BinaryIO) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Each whole row and where it ends; ``None`` for the header.

    :raises ValueError: if it is no table of ours
    """
    end, line = 0, b""

    def lines() -> Iterator[str]:
        nonlocal end, line
        for line in file:
            end += len(line)
            yield line.decode("utf-8", "replace")

    table = csv.reader(lines())
    for number, values in enumerate(table):
        if not number:
            if tuple(values) != COLUMNS:
                raise ValueError("another header")
            yield None, end
        elif len(values) == len(COLUMNS) and line.endswith(b"\r\n"):
            yield dict(zip(COLUMNS, values, strict=True)), end
        elif next(table, None):
            raise ValueError("another number of columns")


def _json_rows(file: BinaryIO) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole row and where it ends.

    :raises ValueError: if a line is no row of ours
    """
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


def _to_parquet(rows: Path, out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"label": pa.int64(), "confidence": pa.float64(), "score": pa.float64()}
    schema = pa.schema(
        [
            (name, types.get(name, pa.bool_() if name == "is_ood" else pa.string()))
            for name in COLUMNS
        ]
    )
    partial = out.with_name(f".{out.name}.partial")
    with rows.open(encoding="utf-8") as file, parquet.ParquetWriter(partial, schema) as writer:
        for first in file:
            lines = chain([first], islice(file, 9_999))
            content = [json.loads(line) for line in lines]
            writer.write_table(pa.Table.from_pylist(content, schema=schema))
    partial.replace(out)
