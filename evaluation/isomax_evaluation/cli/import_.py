"""``isomax import``: a checkpoint of another training script as a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.terminal import one_line_errors, status
from isomax_evaluation.output.errors import InputError


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
        typer.Option(help="The classes in the order of the logits: a text file with one a line."),
    ] = None,
) -> None:
    """Make a model folder of a checkpoint, to compare, calibrate and export."""
    with one_line_errors("timm"):
        names = None
        if class_names is not None:
            try:
                names = class_names.read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{class_names} cannot be read: {error}") from error
            names = [name.strip() for name in names if name.strip()]
        with status("loading PyTorch"):
            from isomax_adapters.timm import folder_from_checkpoint

        made = folder_from_checkpoint(checkpoint, folder, model, names)
        typer.echo(f"model folder: {made}, next: isomax compare --models {made} --id FOLDER")
