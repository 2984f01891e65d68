"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from isomax_evaluation.comparison.report.rows import HIGHER_IS_BETTER, table_rows

MANY, BEST = 30, 3  # rows


def of_comparison(results: pd.DataFrame, intervals: pd.DataFrame, costs: pd.DataFrame) -> Table:
    """The same for the terminal; the best of each column and OOD set is marked with a star. Of many
    rows, those that are best of each model and OOD set."""
    seeds = results["seed"].nunique()
    spread = f", mean ± std over {seeds} seeds" if seeds > 1 else ""
    rows, part = table_rows(results, intervals, costs), ""
    if len(rows) > MANY:
        frame = pd.DataFrame({key: [row[key] for row in rows] for key in ("ood", "loss", "AUROC")})
        rank = frame.groupby(["ood", "loss"])["AUROC"].rank(method="first", ascending=False)
        part = f"the best {BEST} detectors of each model, of {len(rows)} rows in the report; "
        rows = [row for row, place in zip(rows, rank, strict=True) if place <= BEST]
    table = Table(
        title=f"{part}percent{spread}, [95% bootstrap interval]; * best on its OOD set; passes: "
        "forward + backward; time: against plain softmax inference, ± of its 95% interval",
        title_justify="left",
    )
    for column in ("OOD set", "model", "detector"):
        table.add_column(column, no_wrap=True)
    for column in ("accuracy", *HIGHER_IS_BETTER, "passes", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row["ood"]):
            table.add_section()
        previous = row["ood"]
        low, high = row["AUROC low"], row["AUROC high"]
        interval = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
        table.add_row(
            escape(row["ood"]),
            escape(row["loss"]),
            row["detector"],
            _spread(row, "accuracy"),
            escape(_spread(row, "AUROC") + interval),
            *(_spread(row, name) for name in HIGHER_IS_BETTER if name != "AUROC"),
            row["passes"],
            _time(row),
        )
    return table


def _time(row: dict[str, Any]) -> str:
    if np.isnan(row["relative"]):
        return ""
    spread = "" if np.isnan(row["spread"]) else f" ±{row['spread']:.2f}"
    return f"{row['relative']:.2f}x{spread}"


def _spread(row: dict[str, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "error"
    star = "*" if row.get(f"{name} best") else ""
    spread = "" if np.isnan(row[f"{name} std"]) else f" ±{row[f'{name} std']:.1f}"
    few = f" ({row['valued']} of {row['seeds']} seeds)" if row["valued"] < row["seeds"] else ""
    return f"{star}{row[name]:.1f}{spread}" + (few if name == "AUROC" else "")


def of_precision(measured: pd.DataFrame) -> Table:
    """The same for the terminal."""
    alpha = measured["alpha"].iloc[0]
    table = Table(
        title=f"percent of the test images; false alarms: ID images rejected, meant to be at most "
        f"{100 * alpha:g}%; threshold here: the one these images ask for",
        title_justify="left",
    )
    sets = [name for name in measured.columns if name.startswith("AUROC/")]
    columns = ("MB", "accuracy", "label as first", *(escape(f"AUROC {s[6:]}") for s in sets))
    for column in ("", *columns, "false alarms", "threshold", "threshold here"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in measured.to_dict("records"):
        shares = [row["accuracy"], row["same_labels"], *(row[s] for s in sets), row["false_alarms"]]
        table.add_row(
            row["precision"],
            f"{row['size']:.1f}",
            *(f"{100 * share:.2f}" for share in shares),
            f"{row['threshold']:.5f}",
            f"{row['fitted_threshold']:.5f}",
        )
    return table


def of_speed(title: str, rows: Sequence[tuple[str, str, str]]) -> Table:
    """What a file takes to score."""
    table = Table(title=title, title_justify="left")
    for column in ("", "ms per image", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
