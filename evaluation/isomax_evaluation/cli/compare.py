"""``isomax compare``: models, trained here or given, under every detector."""

from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.options import (
    Alpha,
    ClassNames,
    OfflineOk,
    Output,
    PerClass,
    RecipeName,
    Track,
    class_names_of,
    recipe_of,
    settings_of,
    split,
    with_settings,
)
from isomax_evaluation.cli.terminal import (
    INCOMPLETE,
    Bars,
    one_line_errors,
    print_table,
    status,
    tracking,
)
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.recipes import Recipe
from isomax_evaluation.training.source import Source


@with_settings((Source, "pretrained", "weights", "small_images"), Preprocessing, Reading, Recipe)
def compare(
    id: Annotated[str, typer.Option(help="In-distribution data: a folder or a name.")] = "digits",
    ood: Annotated[
        list[str] | None,
        typer.Option(help="OOD data: a folder or a name, or NAME=FOLDER; repeat for more."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="A benchmark of pytorch-ood, such as CIFAR10_OpenOOD, for --id and --ood."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that exists, SOURCE or NAME=SOURCE; repeat for more, with one NAME for "
            "its seeds. A model folder, an output folder of isomax train, a folder of several, a "
            "timm name for its pretrained weights (resnet50.a1_in1k), hf-hub:REPOSITORY, or a timm "
            "name with a checkpoint (resnet50@FILE)."
        ),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Train with these, comma-separated; without --models softmax and isomax, on the "
            "digits isomax+ and dismax+fpr too."
        ),
    ] = None,
    detectors: Annotated[str | None, typer.Option(help="Comma-separated, or 'all'.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A timm architecture to train; test_resnet for digits."),
    ] = None,
    recipe: RecipeName = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train with so many seeds; 3, on the digits 2.")
    ] = None,
    output: Output = Path("isomax-out"),
    images_per_class: PerClass = None,
    fit_images: Annotated[
        int | None,
        typer.Option(help="Fit detectors on at most N training images of each class."),
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(help="Score at most N test images of each dataset.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="Choose the detectors' hyperparameters by this OOD dataset and held-out images."
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            help="The row that becomes chosen.onnx, MODEL/DETECTOR or LOSS/DETECTOR; by default "
            "the best one that a file can hold."
        ),
    ] = None,
    costs: Annotated[bool, typer.Option(help="Measure what a score of each costs.")] = True,
    class_names: ClassNames = None,
    alpha: Alpha = 0.05,
    track: Track = True,
    offline_ok: OfflineOk = False,
    **settings: Any,
) -> None:
    """Compare OOD detectors on models: on given ones, or on a backbone trained with each loss.

    Without arguments: handwritten digits, offline, in two to three minutes. The table is of what
    is asked for; what the output folder has of it is not computed again. Exit status 1 if a
    detector that was asked for by name gave no value.
    """
    digits = id == "digits" and benchmark is None
    with one_line_errors("onnx", "report"):  # before MLflow is loaded and looked for
        named = _known(detectors)
    with one_line_errors("onnx", "report"), tracking(track, output, offline_ok) as started:
        with status("loading PyTorch"):
            from isomax_evaluation.cli import tables
            from isomax_evaluation.comparison import compare as comparison
            from isomax_evaluation.training import jobs

        names = comparison.DETECTORS if named is None else named
        source = settings_of(
            Source, settings | {"model": model or ("test_resnet" if digits else "resnet18")}
        )
        suits = "digits" if digits else jobs.recipe_for(source.model, source.starts_trained)
        with Bars() as progress:
            done = comparison.compare(
                id=id,
                ood=ood or (["digits-held-out", "uniform-noise"] if digits else []),
                losses=None if losses is None else split(losses),
                detectors=names,
                model=source,
                recipe=recipe_of(recipe or suits, settings),
                preprocessing=settings_of(Preprocessing, settings),
                reading=settings_of(Reading, settings),
                seeds=(2 if digits else 3) if seeds is None else seeds,
                output=output,
                images_per_class=images_per_class,
                test_images=test_images,
                alpha=alpha,
                benchmark=benchmark,
                tune=tune,
                models=models or (),
                fit_images=fit_images,
                class_names=class_names_of(class_names),
                export=export,
                costs=costs,
                started=started,
                progress=progress,
            )
        print_table(tables.of_comparison(done.results, done.intervals, done.costs))
        for (loss, reason), rows in done.left_out.groupby(["loss", "reason"], sort=False):
            typer.echo(f"left out with {loss}: {', '.join(rows['detector'])}: {reason}")
        for row in done.errors.drop_duplicates(["loss", "detector", "error"]).itertuples():
            typer.echo(
                f"no value: {row.detector} with {row.loss} on {row.ood}: {row.error}", err=True
            )
        typer.echo(f"\nreport: {output / 'report.html'}\ntable:  {output / 'results.csv'}")
        typer.echo(f"files:  {output / 'README.md'} says what each holds")
        if done.onnx:
            typer.echo(f"ONNX:   {done.onnx}")
        if done.chosen and not done.chosen.error:
            file = output / "chosen.onnx"
            typer.echo(f"chosen: {file}, {done.chosen.described}")
            typer.echo(f"        try: isomax score {file} {output / 'samples'}")
        elif done.chosen:
            typer.echo(done.chosen.described, err=True)
    if export and done.chosen and done.chosen.error:
        raise typer.Exit(INCOMPLETE)
    if detectors != "all" and set(done.errors["detector"]) & set(names):
        raise typer.Exit(INCOMPLETE)


def _known(detectors: str | None) -> tuple[str, ...] | None:
    """The detectors that are asked for, all of which there are; none if none are."""
    if not detectors:
        return None
    with status("loading PyTorch"):
        from isomax_adapters.pytorch_ood import NAMES, check_names

        names = NAMES if detectors == "all" else tuple(split(detectors))
        check_names(names)
    return names
