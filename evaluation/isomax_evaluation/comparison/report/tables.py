"""The tables of a comparison, put together from those of its models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from isomax_evaluation.comparison.columns import FILES, OTHERS
from isomax_evaluation.comparison.deploying import Chosen
from isomax_evaluation.comparison.runs import RunResults
from isomax_evaluation.detection.testing.intervals import bootstrap, draw
from isomax_evaluation.detection.testing.metrics import METRICS, one_score
from isomax_evaluation.detection.testing.trial import TestSets
from isomax_evaluation.output.guide import write_guide
from isomax_evaluation.output.tables import write_table

TABLES = (
    *("results", "intervals", "costs", "left_out", "errors", "hyperparameters", "classes"),
    "deployable",
)


@dataclass(frozen=True)
class Comparison:
    """What :func:`~isomax_evaluation.comparison.compare.compare` hands back; all of it is in the
    output folder too.

    The column ``loss`` names the model: by the loss it was trained with here, or by the name that a
    given one has.
    """

    results: pd.DataFrame  #: one row per model, seed, detector and OOD set
    intervals: pd.DataFrame  #: 95% bootstrap intervals: a row per model, detector and OOD set
    costs: pd.DataFrame  #: one row per model and detector
    left_out: pd.DataFrame  #: model, detector and why it cannot work on the model
    errors: pd.DataFrame  #: cells without a value: model, seed, detector, OOD set and the error
    hyperparameters: pd.DataFrame  #: of every detector of every model
    classes: pd.DataFrame  #: recall and false-alarm rate: one row per model, seed and ID class
    deployable: pd.DataFrame  #: which rows can be a file, and the commands that make it
    output: Path
    onnx: Path | None  #: the exported model; none if no model is calibrated
    chosen: Chosen | None  #: the row that was exported beside it, or why none was


def tables_of(tested: Sequence[RunResults], tests: TestSets, output: Path) -> Comparison:
    """What is made of the results of all runs; no file yet.

    :param tested: of all runs, seed by seed
    """
    results, errors, hyperparameters, classes = (
        together([getattr(one.tables, name) for one in tested], FILES[f"{name}.csv"])
        for name in ("results", "errors", "hyperparameters", "classes")
    )
    first = [one for one in tested if one.run.seed == 0]
    return Comparison(
        results=results,
        intervals=intervals(tested, results, tests),
        costs=together([one.tables.costs for one in first], FILES["costs.csv"]),
        left_out=pd.DataFrame(
            [(one.run.name, *item) for one in first for item in one.left_out.items()],
            columns=["loss", "detector", "reason"],
        ),
        errors=errors,
        hyperparameters=hyperparameters,
        classes=classes,
        deployable=together([one.deployable for one in first], FILES["deployable.csv"]),
        output=output,
        onnx=None,
        chosen=None,
    )


def write_tables(done: Comparison) -> None:
    """Each as a file, and what their columns mean."""
    for name in TABLES:
        write_table(done.output / f"{name}.csv", getattr(done, name))
    write_guide(done.output, "compare", FILES, OTHERS)


def together(tables: Sequence[pd.DataFrame], columns: Iterable[str]) -> pd.DataFrame:
    """One below the other; with these columns if there are none."""
    full = [table for table in tables if len(table)]  # others have columns without types
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=list(columns))


def intervals(tested: Sequence[RunResults], results: pd.DataFrame, tests: TestSets) -> pd.DataFrame:
    """Bootstrap intervals of each model, detector and OOD set."""
    generator = np.random.default_rng(0)
    id_drawn = draw(len(tests.known), generator)
    rows = []
    for images in tests.unknown:
        ood_drawn = draw(len(images), generator)
        for name in results["loss"].unique():
            scores = [
                (one.tables.scores.of(tests.known)[0], one.tables.scores.of(images)[0])
                for one in tested
                if one.run.name == name
            ]
            for detector in results[results["loss"] == name]["detector"].unique():
                there = [
                    (known[detector], unknown[detector])
                    for known, unknown in scores
                    if detector in known
                    and detector in unknown
                    and not one_score(known[detector], unknown[detector])
                ]
                if not there:
                    continue
                row: dict[str, object] = {"loss": name, "detector": detector, "ood": images.name}
                for metric, (low, high) in bootstrap(there, id_drawn, ood_drawn).items():
                    row |= {f"{metric} low": low, f"{metric} high": high}
                rows.append(row)
    bounds = [f"{metric} {end}" for metric in METRICS for end in ("low", "high")]
    return pd.DataFrame(rows, columns=["loss", "detector", "ood", *bounds])


def searched(tested: Sequence[RunResults]) -> list[dict[str, object]]:
    """The hyperparameters that were chosen: of each detector, by the runs that agree on them."""
    by_choice: dict[tuple[str, str], list[str]] = {}
    for one in tested:
        for name, values in one.tables.chosen.items():
            listed = ", ".join(f"{key} = {value}" for key, value in values.items())
            by_choice.setdefault((name, listed), []).append(f"{one.run.name} {one.run.seed}")
    return [
        {"detector": name, "values": values, "runs": ", ".join(where)}
        for (name, values), where in sorted(by_choice.items())
    ]
