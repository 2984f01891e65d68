"""The tables of a comparison, put together from those of its models."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isomax_adapters.pytorch_ood import why_not
from isomax_evaluation.comparison.columns import FILES
from isomax_evaluation.comparison.runs import Run
from isomax_evaluation.detection.intervals import bootstrap, draw
from isomax_evaluation.detection.metrics import METRICS, one_score
from isomax_evaluation.detection.scores import read_scores
from isomax_evaluation.detection.testing import Tested
from isomax_evaluation.output.files import read_json
from isomax_evaluation.output.tables import read_table


def together(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """A table of all runs, one below the other; of those that have it, without rows if none has."""
    there = [run.folder / name for run in runs if (run.folder / name).is_file()]
    tables = [read_table(path) for path in there]
    # tables without rows have columns without types
    full = [table for table in tables if len(table)] or tables[:1]
    if not full:
        return pd.DataFrame(columns=list(FILES.get(name, ())))
    return pd.concat(full, ignore_index=True)


def classes(runs: Sequence[Run]) -> pd.DataFrame:
    """What each model does with the ID test images of each class."""
    tables = []
    for run in runs:
        if (path := run.folder / "classes.csv").is_file():
            table = read_table(path)
            table.insert(0, "loss", run.name)
            table.insert(1, "seed", run.seed)
            tables.append(table)
    columns = ["loss", "seed", "class", "images", "recall", "false_alarm_rate"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def first_runs(runs: Sequence[Run]) -> list[Run]:
    """One run of each model."""
    return [run for run in runs if run.seed == 0]


def left_out(runs: Sequence[Run], detectors: Sequence[str]) -> pd.DataFrame:
    """The detectors that cannot work on a model, with the reason."""
    rows = [
        {"loss": run.name, "detector": name, "reason": reason}
        for run in first_runs(runs)
        for name, reason in why_not(run.parts(), detectors).items()
    ]
    return pd.DataFrame(rows, columns=["loss", "detector", "reason"])


def intervals(runs: Sequence[Run], results: pd.DataFrame, tested: Tested) -> pd.DataFrame:
    """Bootstrap intervals of each model, detector and OOD set."""
    generator = np.random.default_rng(0)
    id_drawn = draw(len(tested.known), generator)
    rows = []
    for images in tested.unknown:
        ood_drawn = draw(len(images), generator)
        for name in results["loss"].unique():
            scores = [
                (read_scores(run.folder, tested.known.name), read_scores(run.folder, images.name))
                for run in runs
                if run.name == name
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


def tuned(runs: Sequence[Run]) -> list[dict[str, object]]:
    """The hyperparameters that were chosen: of each detector, by the runs that agree on them."""
    by_choice: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        path = run.folder / "hyperparameters.json"
        chosen = read_json(path) if path.is_file() else {}
        for name, values in chosen.items():
            listed = ", ".join(f"{key} = {value}" for key, value in values.items())
            by_choice.setdefault((name, listed), []).append(f"{run.name} {run.seed}")
    return [
        {"detector": name, "values": values, "runs": ", ".join(where)}
        for (name, values), where in sorted(by_choice.items())
    ]
