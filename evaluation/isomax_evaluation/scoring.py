"""Scores of many images into a file: a row for each, on disk as soon as it is made.

Imports neither torch nor pandas.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

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
    done = _read_back(out)
    remaining = iter(inputs)
    for number, (row, source) in enumerate(zip(done, islice(remaining, len(done)), strict=False)):
        if row["source"] != _name(source):
            raise InputError(
                f"{out} is of other images: row {number + 1} is of {row['source']!r}, this run's "
                f"is {source!r}; choose another file"
            )
    advance(len(done))
    failed = sum(bool(row["error"]) for row in done)
    total = len(done)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", newline="", encoding="utf-8") as file:
        if out.suffix == ".csv" and not done and not file.tell():
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


def _read_back(out: Path) -> list[dict[str, Any]]:
    """The whole rows of an earlier run; a row cut off in the middle is taken away."""
    if not out.exists() or not out.stat().st_size:
        return []
    text = out.read_bytes().decode("utf-8", "replace")
    rows = _csv_rows(text) if out.suffix == ".csv" else _json_rows(text)
    if rows is None:
        raise InputError(f"{out} is there already and holds no scores; choose another file")
    whole = io.StringIO(newline="")
    if out.suffix == ".csv":
        csv.writer(whole).writerow(COLUMNS)
    for row in rows:
        _write(whole, out.suffix, row)
    if whole.getvalue() != text:
        partial = out.with_name(f".{out.name}.partial")
        partial.write_bytes(whole.getvalue().encode())
        partial.replace(out)
    return rows


def _csv_rows(text: str) -> list[dict[str, Any]] | None:
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines or tuple(lines[0]) != COLUMNS:
        return None
    cut = not text.endswith("\r\n")
    whole = lines[1:-1] if cut else lines[1:]
    if any(len(line) != len(COLUMNS) for line in whole):
        return None
    return [dict(zip(COLUMNS, line, strict=True)) for line in whole]


def _json_rows(text: str) -> list[dict[str, Any]] | None:
    lines = text.split("\n")[:-1]  # what follows the last line break was cut off
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        return None
    if any(not isinstance(row, dict) or tuple(row) != COLUMNS for row in rows):
        return None
    return rows


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
