"""``isomax import``: a checkpoint of another training script as a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.options import class_names_of
from isomax_evaluation.cli.terminal import one_line_errors, status


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="Such as model_best.pth.tar of timm's train.py, or .safetensors.")
    ],
    folder: Annotated[Path, typer.Argument(help="The model folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="A timm architecture, where the checkpoint does not name its own."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="The classes in the order of the logits: a text file with one a line.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Make a model folder of a checkpoint, to compare, calibrate and export."""
    with one_line_errors("timm"):
        names = class_names_of(class_names)
        with status("loading PyTorch"):
            from isomax_adapters.timm import folder_from_checkpoint

        made = folder_from_checkpoint(checkpoint, folder, model, names)
        if names is None:
            typer.echo(
                "its class names are not known: calibrate, compare and export find their order by "
                "images, or give them with --class-names FILE",
                err=True,
            )
        typer.echo(f"model folder: {made}, next: isomax compare --models {made} --id FOLDER")
