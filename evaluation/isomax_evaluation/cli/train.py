"""``isomax train``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.options import (
    Alpha,
    OfflineOk,
    Output,
    PerClass,
    RecipeName,
    Track,
    recipe_of,
    settings_of,
    with_settings,
)
from isomax_evaluation.cli.terminal import Bars, one_line_errors, show_threshold, status, tracking
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.recipes import Recipe
from isomax_evaluation.training.source import Source


@with_settings(Source, Preprocessing, Reading, Recipe)
def train(
    data: Annotated[
        str,
        typer.Option(
            help="A folder with one subfolder per class, a table with path and label of each "
            "image (labels.csv), or a name."
        ),
    ],
    output: Output = Path("isomax-train"),
    loss: Annotated[
        str, typer.Option(help="softmax, isomax, isomax+, dismax, dismax+fpr.")
    ] = "isomax",
    recipe: RecipeName = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    images_per_class: PerClass = None,
    val_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the training images held out, to choose weights and set the threshold; "
            "by default a tenth, or as many as --alpha takes."
        ),
    ] = None,
    alpha: Alpha = 0.05,
    auto_batch: Annotated[
        bool,
        typer.Option("--auto-batch", help="As many images per update as fit into memory."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Look before: images, model, recipe, memory and time; train and write nothing.",
        ),
    ] = False,
    track: Track = True,
    offline_ok: OfflineOk = False,
    register: Annotated[
        str | None,
        typer.Option(help="Register the model under this name, with the alias 'candidate'."),
    ] = None,
    **settings: Any,
) -> None:
    """Train or fine-tune a timm model; calibrate its threshold; write a model folder.

    Run the same command again to go on after an interruption.
    """
    if check:
        track, register = False, None
    with one_line_errors("train"), tracking(track, output, offline_ok, register) as started:
        with status("loading PyTorch"):
            from isomax_evaluation.training import jobs
            from isomax_evaluation.training import train as training
            from isomax_evaluation.training.outcome import outcome

        source = settings_of(Source, settings)
        with Bars() as progress:
            folder = training.train(
                data,
                output,
                model=source,
                loss=loss,
                recipe=recipe_of(
                    recipe or jobs.recipe_for(source.model, source.starts_trained), settings
                ),
                preprocessing=settings_of(Preprocessing, settings),
                reading=settings_of(Reading, settings),
                seed=seed,
                alpha=alpha,
                images_per_class=images_per_class,
                val_share=val_share,
                auto_batch=auto_batch,
                check=check,
                started=started,
                progress=progress,
            )
        if check:
            return
        if os.environ.get("RANK", "0") != "0":
            return  # of several processes the first one speaks
        for line in outcome(output):
            typer.echo(line)
        show_threshold(folder)
        if register:
            with status("exporting"):
                from isomax_adapters.onnx import export as export_onnx

                export_onnx(folder, output / "model.onnx")
