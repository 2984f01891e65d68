"""The commands, a file for each; torch and MLflow are imported where needed."""

import importlib.metadata
import inspect
import io
import sys
import traceback
from typing import Annotated

import typer

from isomax_evaluation.cli.calibrate import calibrate
from isomax_evaluation.cli.compare import compare
from isomax_evaluation.cli.export import export
from isomax_evaluation.cli.import_ import import_
from isomax_evaluation.cli.list_ import list_
from isomax_evaluation.cli.score import score
from isomax_evaluation.cli.speed import speed
from isomax_evaluation.cli.terminal import DEFECT, INCOMPLETE
from isomax_evaluation.cli.track import track
from isomax_evaluation.cli.train import train

app = typer.Typer(
    help="Images that a classifier does not know: train timm models with IsoMax, compare OOD "
    "detectors, export to ONNX, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, train, import_, calibrate, export, score, speed, track, list_):
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    # Rich would break a paragraph wherever the docstring does
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(command.__name__.rstrip("_"), help=text)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isomax {importlib.metadata.version('isomax')}")
        raise typer.Exit


@app.callback()
def isomax(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is.", callback=_version),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console need not know every letter of a name
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception:  # what commands do not expect
        traceback.print_exc()
        typer.echo(DEFECT, err=True)
        sys.exit(INCOMPLETE)
