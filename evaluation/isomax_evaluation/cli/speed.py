"""``isomax speed``."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.terminal import one_line_errors, print_table, status
from isomax_evaluation.output.errors import InputError


def speed(
    model: Annotated[
        Path | None, typer.Argument(help="A file written by isomax export, to measure that.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="An exported ResNet-18 instead of the heads.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="With a file: a folder to score, instead of made images.")
    ] = None,
) -> None:
    """Measure what the heads cost against nn.Linear, or an ONNX file, on this machine."""
    with one_line_errors("train", "onnx"):
        if images and not (onnx or model):
            raise InputError("--images goes with a file, or with --onnx")
        with status("measuring"):
            from isomax_evaluation.speed import files as onnx_speed
            from isomax_evaluation.speed import heads as head_speed

            if model:
                table = onnx_speed.measure_file(model, images, quick)
            else:
                table = onnx_speed.measure(images, quick) if onnx else head_speed.measure(quick)
        print_table(table)
