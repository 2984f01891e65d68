"""``isomax train``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.options import (
    Alpha,
    ClassMap,
    CropMode,
    CropPct,
    GreyRange,
    GroupBy,
    ImageSize,
    InChans,
    Interpolation,
    Model,
    OfflineOk,
    Orientation,
    Output,
    PerClass,
    Pretrained,
    RecipeName,
    Root,
    SkipBad,
    SmallImages,
    Track,
    Weights,
    Workers,
    grey_range_of,
    image_size_of,
    recipe_of,
    with_recipe_options,
)
from isomax_evaluation.cli.terminal import one_line_errors, show_threshold, status, tracking


@with_recipe_options
def train(
    data: Annotated[
        str,
        typer.Option(
            help="A folder with one subfolder per class, a table with path and label of each "
            "image (labels.csv), or a name."
        ),
    ],
    output: Output = Path("isomax-train"),
    model: Model = "resnet18",
    loss: Annotated[
        str, typer.Option(help="softmax, isomax, isomax+, dismax, dismax+fpr.")
    ] = "isomax",
    recipe: RecipeName = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    pretrained: Pretrained = False,
    weights: Weights = None,
    small_images: SmallImages = False,
    image_size: ImageSize = None,
    in_chans: InChans = None,
    grey_range: GreyRange = None,
    crop_mode: CropMode = None,
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    orientation: Orientation = None,
    data_root: Root = None,
    images_per_class: PerClass = None,
    val_share: Annotated[
        float,
        typer.Option(
            help="Share of the training images held out: half choose weights, half set the "
            "threshold."
        ),
    ] = 0.1,
    group_by: GroupBy = None,
    class_map: ClassMap = None,
    alpha: Alpha = 0.05,
    skip_bad_images: SkipBad = False,
    workers: Workers = 2,
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
    **recipe_options: Any,
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

        folder = training.train(
            data,
            output,
            model=model,
            loss=loss,
            recipe=recipe_of(
                recipe or jobs.recipe_for(model, pretrained or weights is not None), recipe_options
            ),
            seed=seed,
            pretrained=pretrained,
            weights=weights,
            small_images=small_images,
            image_size=image_size_of(image_size),
            in_chans=in_chans,
            grey_range=grey_range_of(grey_range),
            crop_mode=crop_mode,
            crop_pct=crop_pct,
            interpolation=interpolation,
            orientation=orientation,
            alpha=alpha,
            root=data_root,
            images_per_class=images_per_class,
            val_share=val_share,
            group_by=group_by,
            class_map=class_map,
            skip_bad_images=skip_bad_images,
            workers=workers,
            auto_batch=auto_batch,
            check=check,
            started=started,
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
