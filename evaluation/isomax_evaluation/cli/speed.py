"""``isomax speed``."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.terminal import one_line_errors, print_table, status


def speed(
    model: Annotated[Path, typer.Argument(help="A file written by isomax export.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder to score, instead of made images.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
) -> None:
    """Measure what an exported file takes to score images on this machine."""
    with one_line_errors("timm"):
        with status("measuring"):
            from isomax_evaluation.cli.tables import of_speed
            from isomax_evaluation.speed.files import measure

            table = of_speed(*measure(model, images, quick))
        print_table(table)
