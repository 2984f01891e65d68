"""Plots of the scores: ROC curves and histograms."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isomax_evaluation.comparison.runs import RunResults
from isomax_evaluation.detection.testing.trial import TestSets
from isomax_evaluation.output.files import write_whole

AllScores = dict[str, dict[str, np.ndarray]]
ID = ""  # the ID test set among the datasets of a score; no OOD set has this name
LINES = ("-", "--", ":", "-.")


def write_plots(output: Path, results: pd.DataFrame, scores: AllScores) -> None:
    """``plots/roc.png`` and ``plots/scores.png``: each loss's best detector on each OOD set.

    :param scores: as :func:`scores_of` gives them
    """
    sets, losses = results["ood"].unique(), results["loss"].unique()
    there = [f"{row.loss}, {row.detector}" in scores for row in results.itertuples()]
    valued = results[there].dropna(subset="AUROC")
    mean = valued.groupby(["loss", "ood", "detector"])["AUROC"].mean()
    (output / "plots").mkdir(exist_ok=True)

    def draw(
        name: str, plot: Callable[[Axes, str, str], None], rows: Sequence[str], legend: str
    ) -> None:
        figure = Figure(figsize=(4.5 * len(sets), 3.4 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(sets), squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            for axis, ood in zip(line, sets, strict=True):
                for loss in losses if row == "all" else [row]:
                    if (loss, ood) in mean.index:
                        plot(axis, f"{loss}, {mean[loss, ood].idxmax()}", ood)
                if axis.has_data():
                    axis.legend(fontsize="small", loc=legend)
        path = output / "plots" / name
        write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=110))

    def roc(axis: Axes, name: str, ood: str) -> None:
        known, unknown = np.sort(scores[name][ID]), np.sort(scores[name][ood])
        cuts = np.unique(np.concatenate([known, unknown]))
        rates = [
            [*(1 - np.searchsorted(values, cuts, side="left") / len(values)), 0]
            for values in (known, unknown)
        ]
        style = LINES[len(axis.lines) % len(LINES)]  # told apart without colour
        axis.plot(*rates, style, label=name)
        axis.set(title=ood, xlabel="ID images rejected", ylabel="OOD images rejected")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    def histogram(axis: Axes, name: str, ood: str) -> None:
        # float32 has too few numbers between scores that are nearly alike
        known, unknown = (scores[name][part].astype(np.float64) for part in (ID, ood))
        bins = np.histogram_bin_edges(np.concatenate([known, unknown]), 40).tolist()
        axis.hist(known, bins, density=True, alpha=0.6, label="ID")
        axis.hist(unknown, bins, density=True, alpha=0.6, label=ood, hatch="//")
        axis.set(title=name, xlabel="outlier score", yticks=[])

    draw("roc.png", roc, ["all"], "lower right")
    draw("scores.png", histogram, list(losses), "best")


def scores_of(tested: Sequence[RunResults], tests: TestSets) -> AllScores:
    """Scores of the first seed, by "loss, detector" and dataset; the ID set is :data:`ID`."""
    scores: AllScores = {}
    for one in tested:
        if one.run.seed == 0:
            known = one.tables.scores.of(tests.known)[0]
            for images in tests.unknown:
                for detector, unknown in one.tables.scores.of(images)[0].items():
                    if detector in known:
                        name = f"{one.run.name}, {detector}"
                        scores.setdefault(name, {ID: known[detector]})[images.name] = unknown
    return scores
