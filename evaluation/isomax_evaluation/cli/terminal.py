"""What commands have in common on the terminal: errors, tables, a sign of life, tracking."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import typer

from isomax_evaluation.output.errors import InputError


def path_of(text: str | Path) -> Path:
    """A path as it was given; a shell leaves the ``~`` of ``--output=~/run`` to the program."""
    return Path(text).expanduser()


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
    from rich.console import Console

    console = Console()
    # piped into a file, a table that is cut to 80 columns is of no use
    Console(width=console.width if console.is_terminal else 160).print(table)


def status(what: str) -> AbstractContextManager[Any]:
    """A sign of life on the terminal while something long goes on."""
    from rich.console import Console

    return Console(stderr=True).status(what)


class one_line_errors:  # noqa: N801
    """Errors that name what the user can change become one line and exit status 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        expected = ("InputError", "ModelError", "ModelFolderError", "ExportError", "TrackingError")
        if error is not None and type(error).__name__ in expected:
            typer.echo(f"isomax: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        if isinstance(error, KeyboardInterrupt):
            typer.echo("isomax: stopped", err=True)
            raise typer.Exit(130) from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            typer.echo(f"isomax: {error}; make room and run the same command again", err=True)
            raise typer.Exit(2) from None
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
