"""Options that several commands share; every field of settings as one."""

import inspect
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.terminal import path_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import ALL, RECIPES, Recipe, recipe_named

Output = Annotated[
    Path,
    typer.Option(help="Folder for everything that is written.", parser=path_of, metavar="PATH"),
]
PerClass = Annotated[int | None, typer.Option(help="Use at most N training images per class.")]
Alpha = Annotated[float, typer.Option(help="Share of known images that may be rejected.")]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        help="The classes of a model that does not name them, in the order of its logits: a text "
        "file with one a line. Without it, images decide which of the usual orders it is.",
        metavar="FILE",
    ),
]
RecipeName = Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.")]
Track = Annotated[
    bool, typer.Option(help="Log to MLflow: MLFLOW_TRACKING_URI, or SQLite in the output folder.")
]
OfflineOk = Annotated[
    bool,
    typer.Option(
        "--offline-ok", help="Go on if the MLflow server does not answer; send the rest later."
    ),
]


Some = type | tuple[Any, ...]  # settings, or with the names of some of their fields


def with_settings(*kinds: Some) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put an option for each field of some settings in the place of ``**settings``."""

    def changed(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            _parameter(kind, part)
            for kind, *names in (one if isinstance(one, tuple) else (one,) for one in kinds)
            for part in fields(kind)
            if not names or part.name in names
        ]
        command.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return command

    return changed


def _parameter(kind: type, part: Any) -> inspect.Parameter:
    text = part.metadata["parse"] is not None
    plain = next((k for k in (bool, int, float, str) if part.type in (k, k | None)), str)
    default, panel, flags = part.default, None, list(part.metadata["flags"])
    if kind is Recipe:
        default, panel = None, "Instead of the recipe's"
        if plain is bool and not any(getattr(recipe, part.name) for recipe in RECIPES.values()):
            flags = [f"--{part.name.replace('_', '-')}"]  # there is nothing to take back
    more: dict[str, Any] = {}
    if part.name == "data_root":
        more = {"parser": os.path.expanduser, "metavar": "TEXT"}
    option = typer.Option(*flags, help=part.metadata["help"], rich_help_panel=panel, **more)
    typed = str if text else plain
    return inspect.Parameter(
        part.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if text else default,
        annotation=Annotated[typed if default is not None and not text else typed | None, option],
    )


def settings_of(kind: Any, options: dict[str, Any], base: Any = None) -> Any:
    """Settings as options give them.

    :param options: of a command with :func:`with_settings`; others are left alone
    :param base: what is not given is its
    :raises InputError: naming an option that cannot be read
    """
    given = {}
    for part in fields(kind):
        value, parse = options.get(part.name), part.metadata["parse"]
        if value is None:
            continue
        try:
            given[part.name] = parse(value) if parse is not None else value
        except ValueError as error:
            raise InputError(f"--{part.name.replace('_', '-')} {error}") from error
    return kind(**given) if base is None else replace(base, **given)


def recipe_of(name: str, options: dict[str, Any]) -> Recipe:
    recipe: Recipe = settings_of(Recipe, options, recipe_named(name))
    if recipe.freeze_backbone == ALL:
        recipe = replace(recipe, epochs=0, freeze_backbone=0)
    return recipe


def class_names_of(file: Path | None) -> list[str] | None:
    """The lines of a file of class names."""
    if file is None:
        return None
    from isomax_evaluation.data.listing.listing import class_order
    from isomax_evaluation.data.listing.tables import load_class_map

    return class_order(load_class_map(file))


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
