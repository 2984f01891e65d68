"""The ``isomax`` command: parses and prints; torch and MLflow are imported where needed."""

import errno
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.errors import InputError
from isomax_evaluation.recipes import RECIPES, Recipe

app = typer.Typer(
    help="Images that a classifier does not know: train timm models with IsoMax, compare OOD "
    "detectors, export to ONNX, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
Model = Annotated[str, typer.Option(help="A timm architecture, such as resnet18.")]
Root = Annotated[str | None, typer.Option(help="Folder that named datasets are read from.")]
Pretrained = Annotated[bool, typer.Option(help="Start from timm's pretrained weights.")]
SmallImages = Annotated[
    bool, typer.Option(help="3x3 stride-1 stem without pooling, 32x32 inputs (CIFAR).")
]
ImageSize = Annotated[int | None, typer.Option(help="Input height and width.")]
PerClass = Annotated[int | None, typer.Option(help="Use at most N training images per class.")]
Alpha = Annotated[float, typer.Option(help="Share of known images that may be rejected.")]
SkipBad = Annotated[bool, typer.Option(help="Leave out images that do not decode.")]
RecipeName = Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.")]
Workers = Annotated[int, typer.Option(help="Processes that decode images.")]
Track = Annotated[
    bool, typer.Option(help="Log to MLflow: MLFLOW_TRACKING_URI, or SQLite in the output folder.")
]
OfflineOk = Annotated[
    bool, typer.Option(help="Go on if the MLflow server does not answer; send the rest later.")
]


def _with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for each field of a recipe in the place of ``**recipe_options``."""
    signature = inspect.signature(command)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = []
    for part in fields(Recipe):
        kind = part.type if part.type in (int, float, str, bool) else str
        if part.type == float | None:
            kind = float
        option = typer.Option(help=part.metadata["help"], rich_help_panel="Instead of the recipe's")
        added.append(
            inspect.Parameter(
                part.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    command.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return command


@app.command()
@_with_recipe_options
def compare(
    id: Annotated[str, typer.Option(help="In-distribution data: a folder or a name.")] = "digits",
    ood: Annotated[
        list[str] | None, typer.Option(help="OOD data: a folder or a name; repeat for more.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="A benchmark of pytorch-ood, such as CIFAR10_OpenOOD, for --id and --ood."
        ),
    ] = None,
    losses: Annotated[str, typer.Option(help="Comma-separated.")] = "softmax,isomax",
    detectors: Annotated[str | None, typer.Option(help="Comma-separated, or 'all'.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A timm architecture; test_resnet for digits.")
    ] = None,
    recipe: RecipeName = None,
    seeds: Annotated[int, typer.Option(help="Train with so many seeds.")] = 3,
    output: Output = Path("isomax-out"),
    pretrained: Pretrained = False,
    small_images: SmallImages = False,
    image_size: ImageSize = None,
    data_root: Root = None,
    images_per_class: PerClass = None,
    test_images: Annotated[
        int | None, typer.Option(help="Score at most N test images of each dataset.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="Choose the detectors' hyperparameters by this OOD dataset and held-out images."
        ),
    ] = None,
    alpha: Alpha = 0.05,
    skip_bad_images: SkipBad = False,
    workers: Workers = 2,
    track: Track = True,
    offline_ok: OfflineOk = False,
    **recipe_options: Any,
) -> None:
    """Train a backbone with each loss and compare OOD detectors on it.

    Without arguments: handwritten digits, offline, in under three minutes.
    """
    digits = id == "digits" and benchmark is None
    with _one_line_errors(), _tracking(track, output, offline_ok) as started:
        with _status("loading PyTorch"):
            from isomax_evaluation import comparison
            from isomax_evaluation.report import terminal_table

        names: tuple[str, ...] = comparison.DETECTORS
        if detectors == "all":
            names = comparison.NAMES
        elif detectors:
            names = tuple(_split(detectors))
        done = comparison.compare(
            id=id,
            ood=ood or (["digits-held-out", "uniform-noise"] if digits else []),
            losses=_split(losses),
            detectors=names,
            model=model or ("test_resnet" if digits else "resnet18"),
            recipe=_recipe(recipe or ("digits" if digits else "finetune"), recipe_options),
            seeds=seeds,
            output=output,
            pretrained=pretrained,
            small_images=small_images,
            image_size=image_size,
            root=data_root,
            images_per_class=images_per_class,
            test_images=test_images,
            alpha=alpha,
            skip_bad_images=skip_bad_images,
            workers=workers,
            benchmark=benchmark,
            tune=tune,
            started=started,
        )
        _print_table(terminal_table(done.results, done.intervals, done.costs))
        for (loss, reason), rows in done.left_out.groupby(["loss", "reason"], sort=False):
            typer.echo(f"left out with {loss}: {', '.join(rows['detector'])}: {reason}")
        for row in done.errors.drop_duplicates(["loss", "detector", "error"]).itertuples():
            typer.echo(
                f"no value: {row.detector} with {row.loss} on {row.ood}: {row.error}", err=True
            )
        typer.echo(f"\nreport: {output / 'report.html'}\ntable:  {output / 'results.csv'}")
        typer.echo(f"ONNX:   {done.onnx}, try: isomax score {done.onnx} IMAGE_OR_FOLDER")
    if len(done.errors):
        raise typer.Exit(1)


@app.command()
@_with_recipe_options
def train(
    data: Annotated[str, typer.Option(help="A folder with one subfolder per class, or a name.")],
    output: Output = Path("isomax-train"),
    model: Model = "resnet18",
    loss: Annotated[
        str, typer.Option(help="softmax, isomax, isomax+, dismax, dismax+fpr.")
    ] = "isomax",
    recipe: RecipeName = "finetune",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    pretrained: Pretrained = False,
    small_images: SmallImages = False,
    image_size: ImageSize = None,
    data_root: Root = None,
    images_per_class: PerClass = None,
    val_share: Annotated[
        float, typer.Option(help="Share of the training images held out for the threshold.")
    ] = 0.1,
    alpha: Alpha = 0.05,
    skip_bad_images: SkipBad = False,
    workers: Workers = 2,
    track: Track = True,
    offline_ok: OfflineOk = False,
    register: Annotated[
        str | None,
        typer.Option(help="Register the model under this name, with the alias 'candidate'."),
    ] = None,
    **recipe_options: Any,
) -> None:
    """Train or fine-tune a timm model; calibrate its threshold; write a model folder.

    Run the same command again to go on after an interruption.
    """
    with _one_line_errors(), _tracking(track, output, offline_ok, register) as started:
        with _status("loading PyTorch"):
            from isomax_evaluation import training

        folder = training.train(
            data,
            output,
            model=model,
            loss=loss,
            recipe=_recipe(recipe or "finetune", recipe_options),
            seed=seed,
            pretrained=pretrained,
            small_images=small_images,
            image_size=image_size,
            alpha=alpha,
            root=data_root,
            images_per_class=images_per_class,
            val_share=val_share,
            skip_bad_images=skip_bad_images,
            workers=workers,
            started=started,
        )
        if os.environ.get("RANK", "0") != "0":
            return  # of several processes the first one speaks
        typer.echo((output / "summary.json").read_text().strip())
        typer.echo(f"model folder: {folder}, next: isomax export {folder} model.onnx")
        if register:
            with _status("exporting"):
                from isomax_adapters.onnx import export as export_onnx

                export_onnx(folder, output / "model.onnx")


@app.command()
def export(
    model_folder: Annotated[Path, typer.Argument(help="Folder written by isomax train.")],
    path: Annotated[Path, typer.Argument(help="The ONNX file to write.")] = Path("model.onnx"),
    precision: Annotated[
        str, typer.Option(help="Of the backbone: fp32, fp16, or int8 (needs --id).")
    ] = "fp32",
    id: Annotated[
        str | None,
        typer.Option(help="The model's classes: calibrates int8; what the precision costs on it."),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option(help="OOD data for AUROC: a folder or a name; repeatable.")
    ] = None,
    data_root: Root = None,
    test_images: Annotated[
        int | None, typer.Option(help="Measure on at most N images of each dataset.")
    ] = None,
    skip_bad_images: SkipBad = False,
    workers: Workers = 2,
) -> None:
    """Export a model folder to one ONNX file: raw pixels in, verdict out.

    With --id the file's accuracy, false alarms and threshold are measured, beside float32.
    """
    with _one_line_errors():
        if id is None and (ood or precision == "int8"):
            raise InputError(
                f"{'--ood' if ood else 'int8'} takes --id too: in-distribution data, a folder with "
                "one subfolder per class"
            )
        with _status("loading PyTorch"):
            from isomax_adapters.onnx import export as export_onnx

        try:
            if id is None:
                with _status("exporting"):
                    export_onnx(model_folder, path, precision)
            else:
                _export_and_measure(
                    model_folder=model_folder,
                    path=path,
                    precision=precision,
                    id=id,
                    ood=ood or [],
                    root=data_root,
                    test_images=test_images,
                    skip_bad_images=skip_bad_images,
                    workers=workers,
                )
        except ValueError as error:
            raise InputError(str(error)) from error
        typer.echo(f"wrote {path}, verified against PyTorch")


def _export_and_measure(**arguments: Any) -> None:
    from isomax_evaluation.precision import export_and_measure, terminal_table
    from isomax_evaluation.progress import progress_bar

    with progress_bar() as progress:
        table = export_and_measure(**arguments, progress=progress)
    _print_table(terminal_table(table))


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="File written by isomax export.")],
    paths: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    alpha: Annotated[
        float | None, typer.Option(help="Another false-alarm rate than the exported one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a .csv, .jsonl or .parquet file; an interrupted one is continued."
        ),
    ] = None,
) -> None:
    """Label, confidence, outlier score and verdict of each image. Exit status 1 if some failed."""
    with _one_line_errors():
        from isomax_adapters.onnx.images import find_images
        from isomax_adapters.onnx.runtime import Scorer

        # a name can be too long to exist, or lie in a folder that cannot be read
        if missing := [str(path) for path in paths if not os.path.lexists(path)]:
            raise InputError(f"no such file or folder: {', '.join(missing)}")
        try:
            scorer = Scorer(model, alpha=alpha)
        except ValueError as error:
            raise InputError(str(error)) from error
        images = find_images(paths)
        first = next(images, None)
        if first is None:
            raise InputError(f"no images in {', '.join(map(str, paths))}")
        images = chain([first], images)
        # what is wrong with an image is said in its row
        warnings.filterwarnings("ignore", module=r"PIL\.")
        failed = _score_to_file(scorer, images, out) if out else _score_to_screen(scorer, images)
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
            f"{name}\t{_printable(result.class_name)}\t{result.confidence:.4f}\t{result.score:.5f}\t{verdict}"
        )
    return failed


def _printable(text: str) -> str:
    """Without what would make another row, or steer the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _score_to_file(scorer: Any, images: Iterable[str], out: Path) -> int:
    from isomax_evaluation.progress import progress_bar
    from isomax_evaluation.scoring import score_to_file

    with progress_bar() as progress:
        task = progress.add_task("scoring", total=None)
        total, failed = score_to_file(
            scorer, images, out, lambda done: progress.advance(task, done)
        )
    typer.echo(f"{total} rows in {out}")
    return failed


@app.command()
def speed(
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="An exported ResNet-18 instead of the heads.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="With --onnx: a folder to score, instead of made images.")
    ] = None,
) -> None:
    """Measure what the heads cost against nn.Linear, or an ONNX file, on this machine."""
    with _one_line_errors():
        if images and not onnx:
            raise InputError("--images goes with --onnx")
        with _status("measuring"):
            from isomax_evaluation import head_speed, onnx_speed

            table = onnx_speed.measure(images, quick) if onnx else head_speed.measure(quick)
        _print_table(table)


@app.command()
def results(
    comparisons: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Output folder of isomax compare, the main one first."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("results"),
) -> None:
    """Put comparisons into small tables, and the tables into RESULTS.md beside their folder."""
    with _one_line_errors():
        with _status("reading the tables"):
            from isomax_evaluation.claims import gather
            from isomax_evaluation.results_page import write_page

        if comparisons:
            with _status("measuring inference"):
                gather(comparisons, folder)
        typer.echo(f"wrote {write_page(folder, folder.resolve().parent / 'RESULTS.md')}")


@app.command()
def track(
    output: Annotated[Path, typer.Argument(help="Output folder of isomax compare or train.")],
) -> None:
    """Send an output folder to MLflow; what is there already is not sent again."""
    with _one_line_errors():
        with _status("sending to MLflow"):
            from isomax_adapters.mlflow import track as send
            from isomax_adapters.mlflow import ui_command

            uri = send(output)
        typer.echo(f"MLflow: {ui_command(uri)}")


def main() -> None:
    """Entry point of the console script."""
    app()


@contextmanager
def _tracking(
    wanted: bool, output: Path, offline_ok: bool, register: str | None = None
) -> Iterator[Callable[[], None]]:
    """Mirror the output folder into MLflow; gives what to call when the folder is there."""
    if register and not wanted:
        raise InputError("--register takes MLflow; leave --no-track out")
    if not wanted or os.environ.get("RANK", "0") != "0":  # of several processes the first tracks
        yield lambda: None
        return
    with _status("looking for MLflow"):
        from isomax_adapters.mlflow import LiveTracking, ask_to_register, check_name, ui_command

        if register:
            check_name(register)
        live = LiveTracking(output, offline_ok=offline_ok)

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


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    # piped into a file, a table that is cut to 80 columns is of no use
    Console(width=console.width if console.is_terminal else 160).print(table)


def _status(what: str) -> AbstractContextManager[Any]:
    """A sign of life on the terminal while something long goes on."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def _recipe(name: str, options: dict[str, Any]) -> Recipe:
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        for key in ("decay_milestones", "scale"):
            if key in given:
                number = int if key == "decay_milestones" else float
                given[key] = tuple(number(part) for part in given[key].split(","))
    except ValueError as error:
        raise InputError(f"--{key.replace('_', '-')} takes numbers with commas: {error}") from error
    return replace(RECIPES[name], **given)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


class _one_line_errors:  # noqa: N801
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
