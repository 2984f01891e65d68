"""``isomax track``."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.terminal import one_line_errors, status


def track(
    output: Annotated[Path, typer.Argument(help="Output folder of isomax compare or train.")],
) -> None:
    """Send an output folder to MLflow; what is there already is not sent again."""
    with one_line_errors("mlflow"):
        with status("sending to MLflow"):
            from isomax_adapters.mlflow import track as send
            from isomax_adapters.mlflow import ui_command
            from isomax_adapters.mlflow.tracking.places import read_states

            before = read_states(output)
            uri = send(output)
        told = " (nothing new)" if read_states(output) == before else ""
        typer.echo(f"MLflow{told}: {ui_command(uri)}")
