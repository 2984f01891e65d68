"""Scores of many images into a file: a row for each, on disk as soon as it is made.

Imports neither torch nor pandas.
"""

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from isomax_adapters.runtime import Result, Scorer
from isomax_evaluation.deployment import rows
from isomax_evaluation.deployment.rows import COLUMNS, STATE, Index
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import as_path, as_text

FORMATS = (".csv", ".jsonl", ".parquet")
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # a lock that another process has


@dataclass(frozen=True)
class Scored:
    """What a file holds after a run, and what that run did."""

    total: int  #: rows
    failed: int  #: rows with an error
    added: int  #: of images without a row before
    changed: int  #: of files that had changed since they were scored
    retried: int  #: of images that could not be scored before


def score_to_file(
    scorer: Scorer,
    inputs: Iterable[str],
    out: Path,
    advance: Callable[[int], None],
    batch_size: int = 16,
    doubt: Callable[[str], object] = lambda text: None,
) -> Scored:
    """Score images into a table with one row per image.

    Rows are written as they are made. A file that is there already is gone on with, whether a run
    was interrupted or has finished: rows of images that are as they were stay. Images without a row
    are added, in whatever order they come; those whose size or time of change is another one, and
    those that could not be scored, are scored again. Rows of images that are not among the inputs,
    or have vanished, stay. Images are known by their paths, however they are written. It must be of
    the same model, threshold and false-alarm rate, which are in ``.NAME.run.json`` beside it. While
    a run writes it, no other one does, where the file system has locks. Of a symbolic link, all
    this is of the file that it leads to.

    A parquet file is written at the end, from rows collected in ``.NAME.rows.jsonl`` beside it.

    :param inputs: paths
    :param out: a ``.csv``, ``.jsonl`` or ``.parquet`` file
    :param advance: called with the number of images done since the last call
    :param doubt: called with a line of what may go wrong
    :raises InputError: if the file holds something else or cannot be written, its ending is
        unknown, or another run writes it
    """
    if out.suffix not in FORMATS:
        raise InputError(f"{out} does not end in {', '.join(FORMATS)}, so its format is unknown")
    if os.path.isdir(out):
        raise InputError(f"{out} is a folder; give the name of the file to write")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            reason = f"{out} takes pyarrow: pip install pyarrow, or choose .csv"
            raise InputError(reason) from error
    out = Path(os.path.realpath(out))
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out, doubt) as note:
        lines = out
        if out.suffix == ".parquet":
            lines = out.with_name(f".{out.name}.rows.jsonl")
        begun = [file for file in dict.fromkeys((out, lines)) if _holds_something(file)]
        folder = _check_run(scorer, out, begun, note)
        if begun == [out] and lines != out:  # finished
            with _writing(out):
                rows.from_parquet(out, lines)
        done = _score_to_rows(scorer, inputs, lines, out, folder, advance, batch_size)
        if lines != out:
            with _writing(out):
                rows.to_parquet(lines, out)
                lines.unlink()
    return done


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; rows that are in it stay, and "
            "the same command goes on from there"
        ) from error


@contextmanager
def _locked(out: Path, doubt: Callable[[str], object]) -> Iterator[IO[str]]:
    """The file that says which run an output is of, for this process alone."""
    path = out.with_name(f".{out.name}.run.json")
    with _writing(out):
        note = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with note:
        try:
            _lock(note)
        except OSError as error:
            if error.errno in _TAKEN:
                raise InputError(
                    f"{out} is being written by another run; wait for it, or choose another file"
                ) from error
            doubt(
                f"the file system of {out} has no locks ({error.strerror or error}): start no "
                "other run that writes it until this one is done"
            )
        yield note


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holds_something(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _check_run(scorer: Scorer, out: Path, begun: list[Path], note: IO[str]) -> str:
    """Note what scores the file, or see whether it is what began it.

    :param begun: files that hold something
    :return: the folder that relative names in it are from
    :raises InputError: if something else began them
    """
    run = {"model": scorer.sha256, "threshold": scorer.threshold, "alpha": scorer.alpha}
    note.seek(0)
    content = note.read()
    if not begun:
        with _writing(out):
            note.truncate(0)
            note.write(json.dumps(run | {"folder": os.getcwd()}))
            note.flush()
        return os.getcwd()
    if not content:
        raise InputError(
            f"{begun[0]} is there already, and nothing says which model scored it; choose another "
            "file, or delete it"
        )
    try:
        earlier = json.loads(content)
        if {key: earlier[key] for key in run} == run:
            return str(earlier.get("folder", os.getcwd()))
        if earlier["model"] == scorer.sha256:
            why = (
                f"was scored with alpha {earlier['alpha']}, threshold {earlier['threshold']}, not "
                f"{scorer.alpha}, {scorer.threshold}"
            )
        else:
            why = "was scored by another model"
    except (ValueError, LookupError, TypeError):
        why = f"cannot be continued, since {note.name} is damaged"
    raise InputError(f"{begun[0]} {why}; choose another file, or delete it")


def _score_to_rows(
    scorer: Scorer,
    inputs: Iterable[str],
    path: Path,
    out: Path,
    folder: str,
    advance: Callable[[int], None],
    batch_size: int,
) -> Scored:
    here = folder == os.getcwd()
    counts = {"added": 0, "changed": 0, "retried": 0}
    states: deque[tuple[str, str, tuple[int | None, int | None], str]] = deque()
    with Index() as index:
        with _writing(out):
            place = rows.read_back(path, out, lambda name: _key(folder, name), index)

        def wanted() -> Iterator[str]:
            """The images that need a row."""
            for source in inputs:
                key, state = _key(os.getcwd(), as_text(source)), _state(source)
                before = index.get(key)
                if before is None:
                    what = "added"
                elif before[0] != "/".join("" if part is None else str(part) for part in state):
                    what = "changed"
                elif before[1]:
                    what = "retried"
                else:
                    what = ""
                if not what or key in {waiting for waiting, *_ in states}:
                    advance(1)
                    continue
                states.append((key, source, state, what))
                yield source

        with _writing(out):
            file = path.open("ab", buffering=0)
        with file:
            if not _holds_something(path):
                with _writing(out):
                    rows.begin(file, path.suffix)
            for result in scorer.stream(wanted(), batch_size):
                key, source, state, what = states.popleft()
                row = as_row(result) | dict(zip(STATE, state, strict=True))
                row["source"] = as_text(source if here else os.path.abspath(source))
                with _writing(out):
                    rows.write(file, path.suffix, row)
                index.put(key, rows.state_of(row), bool(result.error), place)
                place += 1
                counts[what] += 1
                advance(1)
        total, failed = index.counts()
        if total < place:
            with _writing(out):
                rows.compact(path, index)
    return Scored(total, failed, **counts)


def as_row(result: Result) -> dict[str, Any]:
    """What is known of an image, by column; ``None`` where nothing is."""
    names = [name for name in COLUMNS if name not in STATE]
    row = {name: getattr(result, name) for name in names} | {"source": as_text(result.source)}
    if result.error:
        row |= dict.fromkeys(("label", "class_name", "confidence", "score", "p_value"))
    return row


def _state(source: str) -> tuple[int | None, int | None]:
    """Size and time of the last change of a file; nothing if it is not there."""
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return None, None
    return found.st_size, found.st_mtime_ns


def _key(folder: str, name: str) -> str:
    """What an image is known by, wherever its name is seen from."""
    path = os.path.join(folder, name)
    return os.path.join(_resolved(os.path.dirname(path)), os.path.basename(path))


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> str:
    return as_text(os.path.realpath(as_path(folder)))
