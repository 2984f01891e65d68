"""``isomax score``."""

import os
import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.terminal import one_line_errors, path_of
from isomax_evaluation.output.errors import InputError


def score(
    model: Annotated[Path, typer.Argument(help="File written by isomax export.")],
    paths: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    alpha: Annotated[
        float | None, typer.Option(help="Another false-alarm rate than the exported one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a .csv, .jsonl or .parquet file; an interrupted one is continued.",
            parser=path_of,
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Label, confidence, outlier score and verdict of each image. Exit status 1 if some failed."""
    with one_line_errors():
        from isomax_adapters.onnx.images import LeavingOut, find_images
        from isomax_adapters.onnx.runtime import Scorer

        # a name can be too long to exist, or lie in a folder that cannot be read
        if missing := [str(path) for path in paths if not os.path.lexists(path)]:
            raise InputError(f"no such file or folder: {', '.join(missing)}")
        try:
            scorer = Scorer(model, alpha=alpha)
        except ValueError as error:
            raise InputError(str(error)) from error
        left_out = LeavingOut()
        images = find_images(paths, left_out.add)
        first = next(images, None)
        if first is None:
            raise InputError(f"no images in {', '.join(map(str, paths))}{left_out}")
        images = chain([first], images)
        # what is wrong with an image is said in its row
        warnings.filterwarnings("ignore", module=r"PIL\.")
        failed = _score_to_file(scorer, images, out) if out else _score_to_screen(scorer, images)
    if reasons := left_out.listed():
        typer.echo(f"left out: {'; '.join(map(str, reasons))}", err=True)
    if failed:
        typer.echo(f"{failed} could not be scored", err=True)
        raise typer.Exit(1)


def _score_to_screen(scorer: Any, images: Iterable[str]) -> int:
    failed = 0
    typer.echo("file\tlabel\tconfidence\tscore\tverdict")
    for result in scorer.stream(images):
        name = _printable(result.source)
        if result.error:
            failed += 1
            typer.echo(f"{name}\t\t\t\terror")
            typer.echo(f"{name}: not scored: {result.error}", err=True)
            continue
        verdict = "OOD" if result.is_ood else "ID"
        typer.echo(
            f"{name}\t{_printable(result.class_name)}\t{result.confidence:.4f}\t{result.score:.7g}\t{verdict}"
        )
    return failed


def _printable(text: str) -> str:
    """Without what would make another row, or steer the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _score_to_file(scorer: Any, images: Iterable[str], out: Path) -> int:
    from isomax_evaluation.deployment.scoring import score_to_file
    from isomax_evaluation.output.progress import progress_bar

    with progress_bar() as progress:
        task = progress.add_task("scoring", total=None)
        total, failed = score_to_file(
            scorer, images, out, lambda done: progress.advance(task, done)
        )
    typer.echo(f"{total} rows in {out}")
    return failed
