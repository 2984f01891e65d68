"""``isomax results``."""

from pathlib import Path
from typing import Annotated

import typer

from isomax_evaluation.cli.terminal import one_line_errors, status


def results(
    comparisons: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Output folder of isomax compare, the main one first."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("results"),
) -> None:
    """Put comparisons into small tables, and the tables into RESULTS.md beside their folder."""
    with one_line_errors("onnx", "report"):
        with status("reading the tables"):
            from isomax_evaluation.claims.gathering import gather
            from isomax_evaluation.claims.results_page import write_page

        if comparisons:
            with status("measuring inference"):
                gather(comparisons, folder)
        typer.echo(f"wrote {write_page(folder, folder.resolve().parent / 'RESULTS.md')}")
