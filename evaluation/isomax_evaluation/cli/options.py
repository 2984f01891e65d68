"""Options that several commands share; every field of a recipe as one."""

import inspect
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.terminal import path_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES, Recipe

Output = Annotated[
    Path,
    typer.Option(help="Folder for everything that is written.", parser=path_of, metavar="PATH"),
]
Model = Annotated[
    str,
    typer.Option(
        help="A timm architecture (resnet18), one with the tag of its weights for --pretrained "
        "(resnet18.a1_in1k), hf-hub:USER/NAME, or local-dir:FOLDER."
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        help="Folder that named datasets are read from.",
        parser=os.path.expanduser,
        metavar="TEXT",
    ),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Start from timm's pretrained weights.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "--initial-checkpoint",
        help="Start from a checkpoint file, .safetensors or .pth, whatever classes it is for; "
        "--initial-checkpoint, as timm's scripts call it, is the same.",
    ),
]
SmallImages = Annotated[
    bool,
    typer.Option("--small-images", help="3x3 stride-1 stem without pooling, 32x32 inputs (CIFAR)."),
]
ImageSize = Annotated[
    str | None, typer.Option(help="Input size: one number, or height and width as H,W.")
]
InChans = Annotated[
    int | None,
    typer.Option(
        help="Read images as 1 channel (grey), 3 (RGB, the default) or 4 (RGB and a fourth band)."
    ),
]
GreyRange = Annotated[
    str | None,
    typer.Option(
        help="Smallest and largest value of grey images of more than 8 bits, as LOW,HIGH, or auto "
        "for the training images' own; what their depth allows by default."
    ),
]
CropMode = Annotated[
    str | None,
    typer.Option(help="How images become the input size: center, squash or border (all of it)."),
]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the image that the centre crop keeps.")
]
Interpolation = Annotated[str | None, typer.Option(help="Of resizing: bicubic or bilinear.")]
Orientation = Annotated[
    str | None,
    typer.Option(help="Read photographs as stored, as timm does, or upright: turned as EXIF says."),
]
PerClass = Annotated[int | None, typer.Option(help="Use at most N training images per class.")]
Alpha = Annotated[float, typer.Option(help="Share of known images that may be rejected.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Images that no split may part (one patient, camera, day): how many characters their "
        "file names begin with alike, or a column of the table."
    ),
]
ClassMap = Annotated[str | None, typer.Option(help="timm's file of class names, in their order.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out images that do not decode.")
]
RecipeName = Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.")]
Workers = Annotated[int, typer.Option(help="Processes that decode images.")]
Track = Annotated[
    bool, typer.Option(help="Log to MLflow: MLFLOW_TRACKING_URI, or SQLite in the output folder.")
]
OfflineOk = Annotated[
    bool,
    typer.Option(
        "--offline-ok", help="Go on if the MLflow server does not answer; send the rest later."
    ),
]


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for each field of a recipe in the place of ``**recipe_options``."""
    signature = inspect.signature(command)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = []
    for part in fields(Recipe):
        kind = part.type if part.type in (int, float, str, bool) else str
        if part.type in (float | None, int | None):
            kind = float if part.type == float | None else int
        if part.name == "freeze_backbone":
            kind = str  # or "all"
        names = []
        if kind is bool and not any(getattr(recipe, part.name) for recipe in RECIPES.values()):
            names = [f"--{part.name.replace('_', '-')}"]  # there is nothing to take back
        option = typer.Option(
            *names, help=part.metadata["help"], rich_help_panel="Instead of the recipe's"
        )
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


def recipe_of(name: str, options: dict[str, Any]) -> Recipe:
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    given = {key: value for key, value in options.items() if value is not None}
    frozen = given.get("freeze_backbone")
    if frozen == "all":
        given |= {"epochs": 0, "freeze_backbone": 0}
    elif frozen is not None:
        if not frozen.isdecimal():
            raise InputError(
                f"--freeze-backbone is {frozen!r}; expected a number of epochs, or all"
            )
        given["freeze_backbone"] = int(frozen)
    try:
        for key in ("decay_milestones", "scale", "mean", "std"):
            if key in given:
                number = int if key == "decay_milestones" else float
                given[key] = tuple(number(part) for part in given[key].split(","))
    except ValueError as error:
        raise InputError(f"--{key.replace('_', '-')} takes numbers with commas: {error}") from error
    return replace(RECIPES[name], **given)


def image_size_of(text: str | None) -> int | tuple[int, int] | None:
    """``H,W``, or one number for both."""
    if text is None:
        return None
    sides = _whole_numbers("--image-size", text)
    if len(sides) > 2:
        raise InputError(f"--image-size is {text!r}; expected one number, or height and width")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def grey_range_of(text: str | None) -> tuple[int, int] | str | None:
    """``LOW,HIGH``, or ``auto``."""
    if text in (None, "auto"):
        return text
    ends = _whole_numbers("--grey-range", text)
    if len(ends) != 2:
        raise InputError(f"--grey-range is {text!r}; expected LOW,HIGH or auto")
    return ends[0], ends[1]


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} takes whole numbers with commas: {error}") from error


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
