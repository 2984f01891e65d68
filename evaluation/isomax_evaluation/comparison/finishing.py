"""What is made of the results of all models: tables, report, a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from isomax_adapters.onnx import export
from isomax_evaluation.comparison.columns import FILES, OTHERS
from isomax_evaluation.comparison.deploying import Chosen
from isomax_evaluation.comparison.plan import Plan
from isomax_evaluation.comparison.report import write_report
from isomax_evaluation.comparison.runs import Run
from isomax_evaluation.comparison.samples import write_samples
from isomax_evaluation.comparison.tables import (
    classes,
    first_runs,
    intervals,
    left_out,
    together,
    tuned,
)
from isomax_evaluation.detection.testing import Tested
from isomax_evaluation.output.errors import InputError, one_line
from isomax_evaluation.output.files import write_json
from isomax_evaluation.output.guide import write_guide
from isomax_evaluation.output.progress import Progress, warn
from isomax_evaluation.output.tables import write_table

TABLES = (
    *("results", "intervals", "costs", "left_out", "errors", "hyperparameters", "classes"),
    "deployable",
)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` hands back; all of it is in the output folder too.

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


def tables_of(
    output: Path, plan: Plan, runs: Sequence[Run], tested: Tested, progress: Progress
) -> Comparison:
    """What is made of the results of all runs."""
    results, errors, hyperparameters = (
        together(runs, f"{name}.csv") for name in ("results", "errors", "hyperparameters")
    )
    return Comparison(
        results=results,
        intervals=intervals(runs, results, tested),
        costs=together(first_runs(runs), "costs.csv"),
        left_out=left_out(runs, plan.detectors),
        errors=errors,
        hyperparameters=hyperparameters,
        classes=classes(runs),
        deployable=pd.DataFrame(),
        output=output,
        onnx=_export(output, runs, progress),
        chosen=None,
    )


def write_all(
    output: Path, plan: Plan, runs: Sequence[Run], tested: Tested, done: Comparison
) -> None:
    for name in TABLES:
        write_table(output / f"{name}.csv", getattr(done, name))
    write_samples(output, tested)
    write_report(
        output, done.results, done.intervals, done.costs, done.left_out, done.errors, tested.known,
        tested.unknown, plan.job.model if plan.losses else None,
        tested.tuning.name if tested.tuning else None, tuned(runs), done.classes, done.deployable,
        done.chosen,
    )  # fmt: skip
    write_guide(output, "compare", FILES, OTHERS)


def _export(output: Path, runs: Sequence[Run], progress: Progress) -> Path | None:
    """The first IsoMax-like model as ONNX, the first of any kind if there is no other; ``None`` if
    none is calibrated, or it cannot be exported, which is said."""
    path = output / "model.onnx"
    ranked = sorted(runs, key=lambda run: (run.name == "softmax", run.given is not None, run.seed))
    folders = [(run, run.calibrated_folder) for run in ranked]
    there = [(run, folder) for run, folder in folders if folder is not None]
    if not path.is_file() and there:
        run, folder = there[0]
        try:
            export(folder, path)
        except InputError as error:  # the tables are worth more than the file
            warn(progress, f"no {path.name} of {run.folder.name}: {one_line(error)}")
            return None
        write_json(output / "model.json", {"exported": run.folder.name})
    return path if path.is_file() else None
