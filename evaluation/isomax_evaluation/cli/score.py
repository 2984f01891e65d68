"""``isomax score``."""

import json
import os
import threading
import warnings
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.terminal import INCOMPLETE, Bars, one_line_errors, path_of
from isomax_evaluation.output.errors import InputError


def score(
    model: Annotated[
        Path, typer.Argument(help="File written by isomax export, compare or train --register.")
    ],
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
    top: Annotated[
        int, typer.Option(min=0, help="The N most probable classes too, with their probabilities.")
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of the network and of decoding; as many as there are cores."),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="ONNX Runtime's, such as CUDAExecutionProvider; repeat for more."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are scored at once.")] = 16,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Larger images are refused.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per image.")] = False,
) -> None:
    """Label, confidence, outlier score, p-value and verdict of each image. Exit status 1 if some
    failed.

    At most a share of alpha of known images has a p-value of at most alpha, for any alpha.
    """
    with one_line_errors():
        if out and (top or as_json):
            option = "--json" if as_json else f"--top {top}"
            raise InputError(
                f"{option} is for what is printed: leave out --out, and send it to a file"
            )
        from isomax_adapters.runtime import Scorer
        from isomax_evaluation.data.listing.files import find_images
        from isomax_evaluation.data.listing.listing import LeavingOut

        # a name can be too long to exist, or lie in a folder that cannot be read
        if missing := [str(path) for path in paths if not os.path.lexists(path)]:
            raise InputError(f"no such file or folder: {', '.join(missing)}")
        limit = {} if max_pixels is None else {"max_pixels": max_pixels}
        scorer = Scorer(model, provider, alpha, threads, **limit)
        left_out = LeavingOut()
        images = find_images(paths, left_out.add)
        first = next(images, None)
        if first is None:
            raise InputError(f"no images in {', '.join(map(str, paths))}{left_out}")
        images = chain([first], images)
        # what is wrong with an image is said in its row
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if out:
            failed = _score_to_file(scorer, images, out, batch_size, paths)
        else:
            results = scorer.stream(images, batch_size, top)
            shown = min(top, len(scorer.class_names))
            failed = _to_json(results, top) if as_json else _to_screen(results, shown)
    if reasons := left_out.listed():
        typer.echo(f"left out: {'; '.join(map(str, reasons))}", err=True)
    if failed:
        typer.echo(f"{failed} could not be scored", err=True)
        raise typer.Exit(INCOMPLETE)


def _to_screen(results: Iterable[Any], shown: int) -> int:
    failed = 0
    columns = ["file", "class", "confidence", "score", "p-value", "verdict"]
    for place in range(1, shown + 1):
        columns += [f"class {place}", f"probability {place}"]
    typer.echo("\t".join(columns))
    for result in results:
        name = _printable(result.source)
        if result.error:
            failed += 1
            typer.echo(f"{name}\t\t\t\t\terror" + "\t\t" * shown)
            typer.echo(f"{name}: not scored: {result.error}", err=True)
            continue
        cells = [
            name,
            _printable(result.class_name),
            f"{result.confidence:.4f}",
            f"{result.score:.7g}",
            f"{result.p_value:.4g}",
            "OOD" if result.is_ood else "ID",
        ]
        for class_name, probability in result.top:
            cells += [_printable(class_name), f"{probability:.4f}"]
        typer.echo("\t".join(cells))
    return failed


def _to_json(results: Iterable[Any], top: int) -> int:
    from isomax_evaluation.deployment.scoring import as_row

    failed = 0
    for result in results:
        failed += bool(result.error)
        row = as_row(result)
        if top:
            row["top"] = [{"class_name": name, "probability": p} for name, p in result.top]
        typer.echo(json.dumps(row, allow_nan=False))
    return failed


def _printable(text: str) -> str:
    """Without what would make another row, or steer the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _score_to_file(
    scorer: Any, images: Iterable[str], out: Path, batch_size: int, paths: list[Path]
) -> int:
    from isomax_evaluation.data.listing.files import find_images
    from isomax_evaluation.deployment.scoring import score_to_file
    from isomax_evaluation.output.progress import warn

    with Bars() as progress:
        task = progress.begin("scoring", None)

        def count() -> None:  # beside the scoring, which begins with the first file
            progress.expect(task, sum(1 for _ in find_images(paths)))

        threading.Thread(target=count, daemon=True).start()
        done = score_to_file(
            scorer, images, out, lambda more: progress.step(task, more, None), batch_size,
            partial(warn, progress),
        )  # fmt: skip
    again = [
        (done.changed, "scored again, since they have changed"),
        (done.retried, "tried again, since they had an error"),
    ]
    told = [f"{number} {what}" for number, what in again if number]
    if not (done.added or told):
        told = ["nothing new"]
    typer.echo(f"{done.total} rows in {out}" + f" ({', '.join(told)})" * bool(told))
    return int(done.failed)
