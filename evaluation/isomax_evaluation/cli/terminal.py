"""What commands have in common on the terminal: errors, tables, a sign of life, tracking."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import typer

from isomax_adapters.extras import MissingExtraError, need
from isomax_evaluation.output.errors import InputError

WIDEST = 10_000  # columns of a table
SHORT = 36  # characters of a cell that shares its line
INCOMPLETE, REFUSED, STOPPED, UNREAD = 1, 2, 130, 141
#: exit status of a command -> what it means
STATUSES = {
    0: "all that was asked for was done",
    INCOMPLETE: "done but for a part, which is named: images that could not be read, cells of a "
    "table that have no value, a row that no file can hold; or, below a traceback, a defect of "
    "isomax, which says how to report it",
    REFUSED: "the command could not do what was asked; one line says why, and nothing is lost",
    STOPPED: "stopped by Ctrl-C; the same command goes on",
    UNREAD: "who read the output went away (`| head`)",
}
DEFECT = (
    "isomax: a defect of isomax, not a mistake of yours; please report it with this traceback, the "
    "command as you gave it, and what isomax --version says"
)


def path_of(text: str | Path) -> Path:
    """A path as it was given; a shell leaves the ``~`` of ``--output=~/run`` to the program."""
    return Path(os.path.expanduser(text))


@contextmanager
def tracking(
    wanted: bool, output: Path, offline_ok: bool, register: str | None = None
) -> Iterator[Callable[[], None]]:
    """Mirror the output folder into MLflow; gives what to call when the folder is there."""
    if register and not wanted:
        raise InputError("--register takes MLflow; leave --no-track out")
    if not wanted or os.environ.get("RANK", "0") != "0":  # of several processes the first tracks
        yield lambda: None
        return
    try:
        need("mlflow", *(["onnx"] if register else []), by="tracking")
    except MissingExtraError as error:
        raise InputError(f"{error}, or leave tracking out with --no-track") from error
    with status("looking for MLflow"):
        from isomax_adapters.mlflow import LiveTracking, ask_to_register, check_name, ui_command

        if register:
            check_name(register)
        live = LiveTracking(output, offline_ok=offline_ok, register=register)

    def started() -> None:
        if register:
            ask_to_register(output, register)
        live.start()

    with live:
        yield started
    if live.complete:
        typer.echo(f"MLflow: {ui_command(live.uri)}")
    else:
        typer.echo(f"MLflow: not everything was sent; send the rest with: isomax track {output}")


def print_table(table: Any) -> None:
    """A table as wide as it is; where the terminal is narrower, a block for each of its rows."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wide = console.options.update(width=WIDEST)
    natural = Measurement.get(console, wide, table).maximum
    if console.is_terminal and natural > console.width:
        print_blocks(table, console)
    else:
        Console(width=max(natural, console.width)).print(table)


def print_blocks(table: Any, console: Any) -> None:
    """Of each row a line of what it is, the columns that are aligned to the left (if all are, the
    first one), and below it the others with their names."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    if table.title:
        console.print(table.title, style="italic")
    others = [c for c in table.columns if c.justify == "right"] or list(table.columns[1:])
    names = [column for column in table.columns if column not in others]
    for place in range(table.row_count):
        cells = {id(column): list(column.cells)[place] for column in table.columns}
        title = "  ".join(Text.from_markup(cells[id(column)]).plain for column in names)
        console.print(Text(title.strip(), style="bold"))
        shown = [
            Text.assemble((f"{column.header}: ", "dim"), Text.from_markup(cells[id(column)]))
            for column in others
            if cells[id(column)]
        ]
        short = [text for text in shown if len(text) <= SHORT]
        console.print(Padding(Columns(short, padding=(0, 3)), (0, 0, 0, 4)))
        for text in shown:
            if len(text) > SHORT:
                console.print(Padding(text, (0, 0, 0, 4)))


def show_threshold(folder: Path) -> None:
    """What the threshold of a model folder promises, and what comes next."""
    from isomax_adapters.timm import load_calibration

    found = load_calibration(folder)
    assert found is not None
    whose = "fresh images"
    if found.guarantee != "established":
        whose = f"these images; of fresh ones {found.guarantee}"
    typer.echo(f"threshold: {found.score} {found.threshold:.6g}, of {found.samples} images")
    typer.echo(f"false alarms: at most {found.alpha:.3g} of {whose}")
    typer.echo(f"model folder: {folder}")
    typer.echo(f"next: isomax export {folder} model.onnx")


class Bars:
    """Bars with counts and the time that remains, on the error stream so that results can be piped;
    lines where it is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.moves: bool = self._bars.console.is_terminal

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def tell(self, text: str) -> None:
        # names may have brackets, which are no markup
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, what: str, total: int | None) -> Any:
        return self._bars.add_task(what, total=total)

    def step(self, task: Any, done: int, what: str | None) -> None:
        self._bars.update(task, advance=done, description=what)

    def expect(self, task: Any, total: int) -> None:
        """How many steps a task has, once that is known."""
        self._bars.update(task, total=total)

    def end(self, task: Any) -> None:
        self._bars.remove_task(task)


def status(what: str) -> AbstractContextManager[Any]:
    """A sign of life on the terminal while something long goes on."""
    from rich.console import Console

    return Console(stderr=True).status(what)


class one_line_errors:  # noqa: N801
    """Errors that name what the user can change become one line and exit status 2. What else is
    raised is a defect of ours and stays what it is."""

    def __init__(self, *extras: str) -> None:
        """
        :param extras: what a command takes beyond what is always installed
        """
        self.extras = extras

    def __enter__(self) -> None:
        try:
            need(*self.extras, by="this command")
        except InputError as error:
            typer.echo(f"isomax: {error}", err=True)
            raise typer.Exit(REFUSED) from None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, InputError):
            typer.echo(f"isomax: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(REFUSED) from None
        if isinstance(error, KeyboardInterrupt):
            typer.echo("isomax: stopped", err=True)
            raise typer.Exit(STOPPED) from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            typer.echo(f"isomax: {error}; make room and run the same command again", err=True)
            raise typer.Exit(REFUSED) from None
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNREAD) from None
