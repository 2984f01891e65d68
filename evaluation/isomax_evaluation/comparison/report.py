"""The table as text and as one self-contained HTML file with plots."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs
from rich.markup import escape
from rich.table import Table

from isomax_evaluation.data.datasets import Images
from isomax_evaluation.detection.testing import read_scores
from isomax_evaluation.output.files import run_folder, write_whole

HIGHER_IS_BETTER = {"AUROC": True, "AUPR-IN": True, "AUPR-OUT": True, "FPR95TPR": False}
QUANTILES = 500  # of each set of scores, so that the file stays small whatever their number
EXAMPLES = 8
ID = ""  # the ID test set among the datasets of a score; no OOD set has this name
LINES = ("-", "--", ":", "-.")


CHANCE = 50.0  # AUROC in percent


def table_rows(
    results: pd.DataFrame, intervals: pd.DataFrame, costs: pd.DataFrame
) -> list[dict[str, Any]]:
    """One row per loss, detector and OOD set: mean and standard deviation over seeds, interval,
    needs and costs. A cell without a value is NaN."""
    rows = []
    cost_of = {(row.loss, row.detector): row for row in costs.itertuples()}
    interval_of = intervals.set_index(["ood", "loss", "detector"])
    grouped = results.groupby(["ood", "loss", "detector"], sort=False)
    for key, group in grouped:
        ood, loss, detector = key
        cost = cost_of.get((loss, detector))
        row = {
            "ood": ood,
            "loss": loss,
            "detector": detector,
            "needs": "" if cost is None else needs(cost),
            "passes": "" if cost is None else f"{cost.forward:.0f} + {cost.backward:.0f}",
            "ms": float("nan") if cost is None else float(cost.ms_per_image),
            "relative": float("nan") if cost is None else float(cost.relative_time),
        }
        row["seeds"], row["valued"] = len(group), int(group["AUROC"].notna().sum())
        for name in ("accuracy", "ECE", *HIGHER_IS_BETTER):
            values = 100 * group[name].dropna()
            row[name] = float(values.mean())
            row[f"{name} std"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        for name in HIGHER_IS_BETTER:
            for end in ("low", "high"):
                there = key in interval_of.index
                bound = interval_of.loc[key, f"{name} {end}"] if there else float("nan")
                row[f"{name} {end}"] = 100 * float(bound)
        rows.append(row)
    order = list(results["ood"].unique())
    rows.sort(key=lambda row: order.index(row["ood"]))  # stable: losses and detectors stay put
    for ood in order:
        # one score for all images gives an AUPR of 75%: what is no better than chance is not best
        informed = [row for row in rows if row["ood"] == ood and row["AUROC"] > CHANCE]
        for name, higher in HIGHER_IS_BETTER.items():
            values = [row[name] for row in informed if not np.isnan(row[name])]
            for row in informed:
                row[f"{name} best"] = bool(values) and row[name] == (max if higher else min)(values)
    return rows


def needs(cost: Any) -> str:
    """What a detector needs beyond a forward pass, in a few words, from its row of the costs."""
    found = []
    if cost.fitted:
        found.append("fit")
    if cost.gradients:
        found.append("gradients")
    if cost.hyperparameters:
        found.append(
            f"{cost.hyperparameters:.0f} hyperparameter" + "s" * (cost.hyperparameters > 1)
        )
    return ", ".join(found) or "nothing"


def terminal_table(results: pd.DataFrame, intervals: pd.DataFrame, costs: pd.DataFrame) -> Table:
    """The same for the terminal; the best of each column and OOD set is marked with a star."""
    seeds = results["seed"].nunique()
    table = Table(
        title=f"percent, mean ± std over {seeds} seeds, [95% bootstrap interval]; * best on its "
        "OOD set; passes: forward + backward; time: against plain softmax inference",
        title_justify="left",
    )
    for column in ("OOD set", "loss", "detector", "accuracy"):
        table.add_column(column, no_wrap=True)
    for column in (*HIGHER_IS_BETTER, "passes", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in table_rows(results, intervals, costs):
        if previous not in (None, row["ood"]):
            table.add_section()
        previous = row["ood"]
        low, high = row["AUROC low"], row["AUROC high"]
        interval = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
        table.add_row(
            escape(row["ood"]),
            row["loss"],
            row["detector"],
            _spread(row, "accuracy"),
            escape(_spread(row, "AUROC") + interval),
            *(_spread(row, name) for name in HIGHER_IS_BETTER if name != "AUROC"),
            row["passes"],
            "" if np.isnan(row["relative"]) else f"{row['relative']:.2f}x",
        )
    return table


def write_report(
    output: Path,
    results: pd.DataFrame,
    intervals: pd.DataFrame,
    costs: pd.DataFrame,
    left_out: pd.DataFrame,
    errors: pd.DataFrame,
    id_test: Images,
    ood_sets: Sequence[Images],
    model: str,
    tuned_on: str | None = None,
    tuned: Sequence[dict[str, object]] = (),
) -> Path:
    """``report.html`` in the output folder: works from the file, offline.

    :param results: one row per loss, seed, detector and OOD set
    :param intervals: bootstrap intervals, one row per loss, detector and OOD set
    :param costs: one row per loss and detector
    :param left_out: loss, detector, reason
    :param errors: loss, seed, detector, OOD set and error of the cells without a value
    :param id_test: the ID test images that were scored
    :param ood_sets: the OOD images that were scored
    :param model: the architecture
    :param tuned_on: the OOD set that hyperparameters were chosen by
    :param tuned: detector, values and runs of each choice
    """
    write_plots(output, results, id_test.name)
    scores = _scores(output, results, id_test.name)
    environment = Environment(
        loader=PackageLoader("isomax_evaluation.comparison", "templates"),
        autoescape=select_autoescape(),
    )
    rows = table_rows(results, intervals, costs)
    html = environment.get_template("report.html").render(
        rows=rows,
        metrics=list(HIGHER_IS_BETTER),
        better=[(3 + place, higher) for place, higher in enumerate(HIGHER_IS_BETTER.values())],
        seeds=int(results["seed"].nunique()),
        chance=CHANCE,
        auroc_column=3 + list(HIGHER_IS_BETTER).index("AUROC"),
        model=model,
        tuned_on=tuned_on,
        tuned=tuned,
        id_name=id_test.name,
        left_out=left_out.to_dict("records"),
        errors=errors.to_dict("records"),
        examples=_examples(scores, rows, id_test, ood_sets),
        data=_for_script(_quantiles(scores)),
        points=_for_script(
            [{k: None if v != v else v for k, v in row.items()} for row in rows]  # NaN is no JSON
        ),
        id_key=ID,
        plotly=get_plotlyjs(),
    )
    path = output / "report.html"
    write_whole(path, lambda partial: partial.write_text(html, encoding="utf-8"))
    return path


def _for_script(content: Any) -> str:
    """JSON that a script element may hold: "</" would end it."""
    return json.dumps(content, allow_nan=False).replace("</", "<\\/")


def write_plots(output: Path, results: pd.DataFrame, id_name: str) -> None:
    """``plots/roc.png`` and ``plots/scores.png``: each loss's best detector on each OOD set."""
    scores = _scores(output, results, id_name)
    sets, losses = results["ood"].unique(), results["loss"].unique()
    there = [f"{row.loss}, {row.detector}" in scores for row in results.itertuples()]
    mean = results[there].groupby(["loss", "ood", "detector"])["AUROC"].mean()
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
        known, unknown = scores[name][ID], scores[name][ood]
        bins = np.histogram_bin_edges(np.concatenate([known, unknown]), 40).tolist()
        axis.hist(known, bins, density=True, alpha=0.6, label="ID")
        axis.hist(unknown, bins, density=True, alpha=0.6, label=ood, hatch="//")
        axis.set(title=name, xlabel="outlier score", yticks=[])

    draw("roc.png", roc, ["all"], "lower right")
    draw("scores.png", histogram, list(losses), "best")


def _spread(row: dict[str, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "error"
    star = "*" if row.get(f"{name} best") else ""
    spread = "" if np.isnan(row[f"{name} std"]) else f" ±{row[f'{name} std']:.1f}"
    few = f" ({row['valued']} of {row['seeds']} seeds)" if row["valued"] < row["seeds"] else ""
    return f"{star}{row[name]:.1f}{spread}" + (few if name == "AUROC" else "")


def _scores(output: Path, results: pd.DataFrame, id_name: str) -> dict[str, dict[str, np.ndarray]]:
    """Scores of the first seed, by "loss, detector" and dataset; the ID set is :data:`ID`."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    first = results["seed"].min()
    for loss in results["loss"].unique():
        folder = run_folder(output, loss, first)
        known = read_scores(folder, id_name)
        for ood in results["ood"].unique():
            unknown = read_scores(folder, ood)
            for detector in known.keys() & unknown.keys():
                name = f"{loss}, {detector}"
                scores.setdefault(name, {ID: known[detector]})[ood] = unknown[detector]
    order = [
        f"{loss}, {name}" for loss, name in results[["loss", "detector"]].drop_duplicates().values
    ]
    return {name: scores[name] for name in order if name in scores}


def _quantiles(scores: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    grid = np.linspace(0, 1, QUANTILES)
    return {
        name: {
            dataset: [
                # as many digits as float32 has: scores of confident networks differ in the last
                float(f"{value:.9g}")
                for value in np.quantile(values[np.isfinite(values)], grid)
            ]
            for dataset, values in by_dataset.items()
        }
        for name, by_dataset in scores.items()
    }


def _examples(
    scores: dict[str, dict[str, np.ndarray]],
    rows: list[dict[str, Any]],
    id_test: Images,
    ood_sets: Sequence[Images],
) -> list[dict[str, Any]]:
    """The ID images scored most OOD and the OOD images scored most ID, by the best IsoMax row."""
    ours = [row for row in rows if row["loss"] != "softmax"] or rows
    strips = []
    for images in ood_sets:
        there = [
            r for r in ours if r["ood"] == images.name and f"{r['loss']}, {r['detector']}" in scores
        ]
        if not there:
            continue
        best = max(there, key=lambda r: r["AUROC"])
        name = f"{best['loss']}, {best['detector']}"
        most_ood = np.argsort(-scores[name][ID])[:EXAMPLES]
        most_id = np.argsort(scores[name][images.name])[:EXAMPLES]
        strips += [
            {
                "title": f"{id_test.name} (ID) scored most OOD by {name}",
                "images": [
                    (_thumbnail(id_test, i), id_test.class_names[id_test.labels[i]])
                    for i in most_ood
                ],
            },
            {
                "title": f"{images.name} (OOD) scored most ID by {name}",
                "images": [(_thumbnail(images, i), "") for i in most_id],
            },
        ]
    unique = {strip["title"]: strip for strip in strips}
    return list(unique.values())


def _thumbnail(images: Images, position: int) -> str:
    image = images.image(position)
    image.thumbnail((96, 96))
    if image.width < 64:
        image = image.resize((64, 64 * image.height // image.width), resample=0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
