"""``isomax calibrate``: detector and threshold for a model that exists."""

from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.options import (
    Alpha,
    ClassNames,
    class_names_of,
    settings_of,
    with_settings,
)
from isomax_evaluation.cli.terminal import Bars, one_line_errors, show_threshold, status
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.errors import InputError


@with_settings((Preprocessing, "image_size"), Reading)
def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, an output folder of isomax train, a timm name for its pretrained "
            "weights, hf-hub:REPOSITORY, or a timm name with a checkpoint (resnet50@FILE)."
        ),
    ],
    id: Annotated[
        str, typer.Option(help="The model's classes: a folder, or a name, with training images.")
    ],
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    detector: Annotated[
        str | None,
        typer.Option(
            help="A detector of isomax compare's table, or isomax, isomax+, dismax for a head at "
            "the class means; by default the score that the head's paper names, or the energy."
        ),
    ] = None,
    alpha: Alpha = 0.05,
    calibration: Annotated[
        str | None,
        typer.Option(help="A folder of the classes' images that the model has not seen."),
    ] = None,
    fit_images: Annotated[
        int | None,
        typer.Option(help="Fit the detector on at most N training images of each class."),
    ] = None,
    bank: Annotated[
        int | None,
        typer.Option(help="Keep at most N of them in KNN's and NNGuide's files."),
    ] = None,
    hyperparameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A hyperparameter of the detector, NAME=NUMBER; repeat for more. epochs=20 trains "
            "the head of --detector isomax+.",
        ),
    ] = None,
    class_names: ClassNames = None,
    **settings: Any,
) -> None:
    """Make a trained classifier say "unknown": fit a detector, calibrate its threshold, and write a
    model folder to export."""
    with one_line_errors("train"):
        with status("loading PyTorch"):
            from isomax_evaluation.deployment import calibrating

        with Bars() as progress:
            folder = calibrating.calibrate(
                model,
                id,
                output,
                detector=detector,
                alpha=alpha,
                calibration=calibration,
                fit_images=fit_images,
                bank=bank,
                hyperparameters=dict(map(_value, hyperparameters or ())),
                image_size=settings_of(Preprocessing, settings).image_size,
                reading=settings_of(Reading, settings),
                class_names=class_names_of(class_names),
                progress=progress,
            )
        show_threshold(folder)


def _value(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"--set {text}: expected NAME=NUMBER") from None
    return name, int(value) if value.is_integer() and "." not in number else value
