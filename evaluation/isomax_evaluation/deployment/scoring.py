"""Scores of many images into a file: a row for each, on disk as soon as it is made.

Imports neither torch nor pandas.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from isomax_adapters.onnx.runtime import Result, Scorer
from isomax_evaluation.output.errors import InputError

COLUMNS = tuple(field.name for field in fields(Result) if field.name != "top")
HEADER = ",".join(COLUMNS) + "\r\n"
FORMATS = (".csv", ".jsonl", ".parquet")


def score_to_file(
    scorer: Scorer, inputs: Iterable[str], out: Path, advance: Callable[[int], None]
) -> tuple[int, int]:
    """Score images into a table with one row per input, in order.

    Rows are written as they are made. A file that is there already is continued, whether a run was
    interrupted or has finished: its rows are kept, and inputs after them are added. It must be of
    the same model, threshold and false-alarm rate, which are in ``.NAME.run.json`` beside it, and
    of the same inputs: its rows those that come first, in order. Files that have vanished since
    keep their rows; a file that has come in between, rather than after them, is refused.

    A parquet file is written at the end, from rows collected in ``.NAME.rows.jsonl`` beside it.

    :param inputs: paths
    :param out: a ``.csv``, ``.jsonl`` or ``.parquet`` file
    :param advance: called with the number of rows done since the last call
    :return: number of rows and how many of them have an error
    :raises InputError: if the file holds something else, or its ending is unknown
    """
    if out.suffix not in FORMATS:
        raise InputError(f"{out} does not end in {', '.join(FORMATS)}, so its format is unknown")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix != ".parquet":
        _check_run(scorer, out, [out])
        return _score_to_rows(scorer, inputs, out, out, advance)
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(f"{out} takes pyarrow: pip install pyarrow, or choose .csv") from error
    rows = out.with_name(f".{out.name}.rows.jsonl")
    if _check_run(scorer, out, [out, rows]) == [out]:  # finished
        _from_parquet(out, rows)
    counts = _score_to_rows(scorer, inputs, rows, out, advance)
    _to_parquet(rows, out)
    rows.unlink()
    return counts


def _check_run(scorer: Scorer, out: Path, files: list[Path]) -> list[Path]:
    """Note what scores the file, or see whether it is what began it.

    :return: those of ``files`` that hold something
    :raises InputError: if something else began them
    """
    note = out.with_name(f".{out.name}.run.json")
    run = {"model": scorer.sha256, "threshold": scorer.threshold, "alpha": scorer.alpha}
    begun = [file for file in files if file.exists() and file.stat().st_size]
    if not begun:
        note.write_text(json.dumps(run), encoding="utf-8")
        return begun
    try:
        earlier = json.loads(note.read_text(encoding="utf-8"))
        if earlier == run:
            return begun
        if earlier["model"] == scorer.sha256:
            why = (
                f"was scored with alpha {earlier['alpha']}, threshold {earlier['threshold']}, not "
                f"{scorer.alpha}, {scorer.threshold}"
            )
        else:
            why = "was scored by another model"
    except FileNotFoundError:
        why = "is there already, and nothing says which model scored it"
    except (ValueError, LookupError, TypeError):
        why = f"cannot be continued, since {note} is damaged"
    raise InputError(f"{begun[0]} {why}; choose another file, or delete it")


def _score_to_rows(
    scorer: Scorer, inputs: Iterable[str], rows: Path, out: Path, advance: Callable[[int], None]
) -> tuple[int, int]:
    remaining = iter(inputs)
    total, failed, ahead = _read_back(rows, out, remaining)
    advance(total)
    with rows.open("a", newline="", encoding="utf-8") as file:
        if rows.suffix == ".csv" and not file.tell():
            file.write(HEADER)
        for result in scorer.stream(chain(ahead, remaining)):
            _write(file, rows.suffix, as_row(result))
            file.flush()
            failed += bool(result.error)
            total += 1
            advance(1)
    return total, failed


def as_row(result: Result) -> dict[str, Any]:
    """What is known of an image, by column; ``None`` where nothing is."""
    row = {name: getattr(result, name) for name in COLUMNS} | {"source": _name(result.source)}
    if result.error:
        row |= dict.fromkeys(("label", "class_name", "confidence", "score", "p_value"))
    return row


def _name(source: str) -> str:
    # file names need not be text
    return source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _write(file: TextIO, suffix: str, row: dict[str, Any]) -> None:
    if suffix == ".csv":
        csv.writer(file).writerow(row.values())
    else:
        file.write(json.dumps(row) + "\n")


def _read_back(rows: Path, out: Path, inputs: Iterator[str]) -> tuple[int, int, list[str]]:
    """Rows of an earlier run, how many have an error, and the input that comes next, if it has
    been taken from ``inputs`` already.

    A row cut off in the middle is taken away. Memory does not grow with the number of rows.
    """
    if not rows.exists():
        return 0, 0, []
    total = failed = kept = vanished = 0
    source: str | None = None  # taken, and without a row so far
    with rows.open("rb") as file:
        try:
            for row, end in (_csv_rows if rows.suffix == ".csv" else _json_rows)(file):
                kept = end
                if row is None:
                    continue
                source = next(inputs, None) if source is None else source
                if source is not None and row["source"] == _name(source):
                    source = None
                elif _is_gone(row["source"]):
                    vanished += 1
                else:
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
    if total and vanished == total:
        raise InputError(f"{out} is of other images, none of which is there; choose another file")
    os.truncate(rows, kept)
    return total, failed, [] if source is None else [source]


def _is_gone(name: str) -> bool:
    # of a name that was no text, the row does not tell
    return "\\x" not in name and not os.path.lexists(name)


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

    header = next(lines(), "")
    if header != HEADER:
        if HEADER.startswith(header):  # cut off
            return
        raise ValueError("another header")
    yield None, end
    table = csv.reader(lines())
    for values in table:
        if len(values) == len(COLUMNS) and line.endswith(b"\r\n"):
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

    types = {"label": pa.int64()}
    types |= dict.fromkeys(("confidence", "score", "p_value"), pa.float64())
    schema = pa.schema(
        [
            (name, types.get(name, pa.bool_() if name == "is_ood" else pa.string()))
            for name in COLUMNS
        ]
    )
    partial = _partial(out)
    with rows.open(encoding="utf-8") as file, parquet.ParquetWriter(partial, schema) as writer:
        for first in file:
            lines = chain([first], islice(file, 9_999))
            content = [json.loads(line) for line in lines]
            writer.write_table(pa.Table.from_pylist(content, schema=schema))
    partial.replace(out)


def _from_parquet(out: Path, rows: Path) -> None:
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
            f"{out} is there already and holds no scores; choose another file"
        ) from error
    partial.replace(rows)


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")
