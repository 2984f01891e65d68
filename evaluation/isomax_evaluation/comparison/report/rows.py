"""The rows of the table: mean and spread over seeds, intervals, needs, costs."""

from typing import Any

import numpy as np
import pandas as pd

HIGHER_IS_BETTER = {"AUROC": True, "AUPR-IN": True, "AUPR-OUT": True, "FPR95TPR": False}
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
            "spread": float(getattr(cost, "spread", float("nan"))),
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


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each OOD set the row of the highest AUROC, and the plain baseline beside it: MaxSoftmax on
    the softmax model, if there is one, else on the same model.

    :param rows: as :func:`table_rows` gives them
    :return: ``ood``, ``best`` (a row, or ``None`` if none is better than chance), ``baseline`` (a
        row, or ``None`` if there is none, or it is the best)
    """
    found = []
    for ood in dict.fromkeys(row["ood"] for row in rows):
        mine = [row for row in rows if row["ood"] == ood]
        best = max(
            (row for row in mine if row["AUROC"] > CHANCE),  # which NaN is not
            key=lambda row: row["AUROC"],
            default=None,
        )
        plain = {row["loss"]: row for row in mine if row["detector"] == "MaxSoftmax"}
        baseline = plain.get("softmax", plain.get(best["loss"]) if best else None)
        if baseline is best or (baseline and np.isnan(baseline["AUROC"])):
            baseline = None
        found.append({"ood": ood, "best": best, "baseline": baseline})
    return found


def needs(cost: Any) -> str:
    """What a detector needs beyond a forward pass, in a few words, from its row of the costs."""
    found = []
    if cost.fitted:
        sample = getattr(cost, "fit_images", None)
        found.append(f"fit on {sample:,.0f} images" if sample and sample == sample else "fit")
    if cost.gradients:
        found.append("gradients")
    if cost.hyperparameters:
        found.append(
            f"{cost.hyperparameters:.0f} hyperparameter" + "s" * (cost.hyperparameters > 1)
        )
    return ", ".join(found) or "nothing"
