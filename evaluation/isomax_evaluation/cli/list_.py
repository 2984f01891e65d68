"""``isomax list``."""

from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.terminal import one_line_errors, print_table


class What(str, Enum):
    """What there is to choose from."""

    recipes = "recipes"
    losses = "losses"
    detectors = "detectors"
    datasets = "datasets"
    benchmarks = "benchmarks"
    providers = "providers"


def list_(what: Annotated[What, typer.Argument(help="What to list.")]) -> None:
    """What the other commands can be given by name.

    recipes: of --recipe. losses: of --loss and --losses. detectors: of --detectors and --detector.
    datasets, benchmarks: of --id, --ood and --benchmark. providers: of --provider, on this machine.
    """
    from rich.markup import escape
    from rich.table import Table

    make, *extras = _LISTS[what]
    with one_line_errors(*extras):
        columns, rows = make()
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row))
        print_table(table)


Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def _recipes() -> Rows:
    from isomax_evaluation.training.recipes import RECIPES, learning_rate

    rows = [
        (
            name,
            str(recipe.epochs),
            str(recipe.batch_size),
            recipe.opt,
            f"{learning_rate(recipe):.3g}",
            recipe.sched,
            recipe.augment,
            recipe.keep,
        )
        for name, recipe in RECIPES.items()
    ]
    return ("recipe", "epochs", "batch", "opt", "lr", "schedule", "augment", "keeps"), rows


def _losses() -> Rows:
    from isomax_evaluation.training.losses import LOSSES

    rows = [(name, loss.head or "linear", loss.score) for name, loss in LOSSES.items()]
    return ("loss", "head", "score that its paper pairs with it"), rows


def _detectors() -> Rows:
    from isomax_evaluation.detection.catalogue import COLUMNS, catalogue

    shown = list(COLUMNS[:4])
    return tuple(shown), [tuple(row) for row in catalogue()[shown].to_numpy()]


def _datasets() -> Rows:
    from isomax_evaluation.data.datasets import named_sets

    return ("dataset", "whose"), list(named_sets().items())


def _benchmarks() -> Rows:
    from isomax_evaluation.data.benchmarks import BENCHMARKS

    return ("benchmark of pytorch-ood",), [(name,) for name in BENCHMARKS]


def _providers() -> Rows:
    import onnxruntime

    return ("provider",), [(name,) for name in onnxruntime.get_available_providers()]


#: what lists, and the extras that it takes
_LISTS: dict[What, tuple[Any, ...]] = {
    What.recipes: (_recipes, "train"),
    What.losses: (_losses, "train"),
    What.detectors: (_detectors, "train", "onnx"),
    What.datasets: (_datasets, "train"),
    What.benchmarks: (_benchmarks, "train"),
    What.providers: (_providers,),
}
