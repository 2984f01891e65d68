"""Comparisons that start from a pretrained backbone: their table, and their part of the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isomax_evaluation.output.files import read_json, read_lines
from isomax_evaluation.output.folders import run_folder
from isomax_evaluation.output.tables import read_table
from isomax_evaluation.training.head_first import epochs_of_head
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import RECIPES, closest_recipe

NOTHING, HEAD, ALL, BOTH = (
    "nothing trained",
    "the head alone",
    "class means, then the whole",
    "the head first, then the whole",
)
STAGES = (NOTHING, HEAD, ALL, BOTH)
TOLERATED = 1.0  # points of accuracy below the best softmax classifier


def starts_trained(settings: dict[str, Any]) -> bool:
    """Whether a comparison trained on from weights that were there before."""
    return bool(settings.get("weights") or settings.get("pretrained"))


def gather_fine_tuning(outputs: Sequence[Path]) -> pd.DataFrame:
    """One row per stage, model, detector and OOD set.

    :param outputs: output folders of ``isomax compare``, each of one stage on one ID set; the first
        of its OOD sets is the one that is near
    """
    return pd.concat([_of(output) for output in outputs], ignore_index=True)


def _of(output: Path) -> pd.DataFrame:
    settings = read_json(output / "settings.json")
    recipe, name = settings["recipe"], Path(settings["id"]).name
    ends = read_table(output / "intervals.csv").set_index(["loss", "detector", "ood"])
    table = read_table(output / "results.csv")
    first = settings["ood_names"][0]
    classes = len(settings["class_names"])
    rows = []
    for row in table.to_dict("records"):
        run = run_folder(output, row["loss"], row["seed"])
        head = epochs_of_head(recipe["head_first"], recipe["epochs"], row["loss"])
        at = ends.loc[(row["loss"], row["detector"], row["ood"])]
        rows.append(
            {
                "id": name,
                "classes": classes,
                "per_class": _per_class(settings, classes),
                "model": settings["model"],
                "size": settings["image_size"],
                "stage": STAGES[2 * (recipe["epochs"] > 0) + (head > 0)],
                "rate": _rate(recipe),
                "epochs": recipe["epochs"],
                "head_epochs": head,
                "loss": row["loss"],
                "seed": row["seed"],
                "detector": row["detector"],
                "ood": row["ood"],
                "near": row["ood"] == first,
                "accuracy": row["accuracy"],
                "AUROC": row["AUROC"],
                "low": at["AUROC low"],
                "high": at["AUROC high"],
                "seconds": _seconds(run),
                "kept": _kept(run),
            }
        )
    return pd.DataFrame(rows).round(4)


def _rate(recipe: dict[str, Any]) -> float:
    """The learning rate, as a multiple of that of the recipe that was changed."""
    named = RECIPES[closest_recipe(recipe)[0]]
    return float(recipe["lr_base"] / named.lr_base) if recipe["lr"] is None else 1.0


def _per_class(settings: dict[str, Any], classes: int) -> int:
    names = [k for k in settings["images"] if k not in ("id test", "id scored")]
    return int(settings["images"][names[0]]) // classes


def _seconds(run: Path) -> float:
    """Wall time of the epochs, of the head alone and of the whole; 0 if there were none."""
    images = read_json(run / "settings.json")["images"]["train"]
    rows = read_lines(run / "metrics.jsonl")
    head = sum(row.get("head_seconds", 0.0) for row in rows)
    return head + sum(images / row["images_per_second"] for row in rows if "lr" in row)


def _kept(run: Path) -> str:
    """Which weights the selection images chose: the start's, the head's, or those of an epoch."""
    return str(read_json(run / "summary.json").get("kept", ""))


def sections(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page says of each ID set."""
    return [
        {"id": name, **_setting(usual), "own": _own(usual), "frozen": _frozen(usual)}
        | {"accuracy": _accuracy(usual), "near": _near(usual), "best": _best(usual)}
        | {"rates": _rates(group)}
        for name, group in table.groupby("id", sort=False)
        if len(usual := group[group["rate"] == 1])
    ]


def _setting(group: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    return {key: first[key] for key in ("classes", "per_class", "model", "size")} | {
        "sets": list(group["ood"].unique())
    }


def _rates(group: pd.DataFrame) -> list[dict[str, Any]]:
    """Each loss when the whole network is trained at other rates than the recipe's, beside the
    same seeds at the recipe's."""
    trained = ["loss", "head_epochs", "epochs"]
    models = group[group["epochs"] > 0].drop_duplicates(["rate", "seed", *trained])
    at_usual, at_others = models[models["rate"] == 1], models[models["rate"] != 1]
    rows = []
    for (rate, loss, head, whole), part in at_others.groupby(["rate", *trained], sort=True):
        same = (at_usual[trained] == [loss, head, whole]).all(axis=1)
        usual = at_usual[same & at_usual["seed"].isin(part["seed"])]
        rows.append(
            {
                "rate": rate,
                "loss": loss,
                "epochs": f"{head} + {whole}",
                "seeds": len(part),
                "kept": _kept_whole(part),
                "accuracy": part["accuracy"].to_list(),
                "usual": usual["accuracy"].to_list(),
            }
        )
    return rows


def _own(group: pd.DataFrame) -> list[dict[str, Any]]:
    """Each stage and loss with the score that its paper pairs with it."""
    rows = []
    for stage in STAGES:
        for loss in LOSSES:
            score = LOSSES[loss].score
            mine = group[(group["stage"] == stage) & (group["loss"] == loss)]
            own = mine[mine["detector"] == score]
            if len(own):
                rows.append(
                    {
                        "stage": stage,
                        "loss": loss,
                        "score": score,
                        "seeds": int(own["seed"].nunique()),
                        "epochs": f"{own['head_epochs'].iloc[0]} + {own['epochs'].iloc[0]}",
                        "kept": _kept_whole(own.drop_duplicates("seed")),
                        "accuracy": own.drop_duplicates("seed")["accuracy"].to_list(),
                        "AUROC": _by_set(own),
                        "seconds": float(own.drop_duplicates("seed")["seconds"].median()),
                    }
                )
    return rows


def _kept_whole(models: pd.DataFrame) -> str:
    """Of how many models the weights of the whole network's training were kept."""
    if not models["epochs"].iloc[0]:
        return ""
    whole = models["kept"].astype(str).str.startswith("epoch").sum()
    return f"{whole} of {len(models)}"


def _frozen(group: pd.DataFrame) -> list[dict[str, Any]]:
    """The detectors on the softmax classifier whose head alone was trained."""
    mine = group[(group["stage"] == HEAD) & (group["loss"] == "softmax")]
    return [
        {"detector": detector, "AUROC": _by_set(rows)}
        for detector, rows in mine.groupby("detector", sort=False)
    ]


def _by_set(rows: pd.DataFrame) -> dict[str, str]:
    """Mean over seeds with the bootstrap interval, percent."""
    return {
        str(ood): f"{100 * part['AUROC'].mean():.1f} [{100 * part['low'].iloc[0]:.1f}, "
        f"{100 * part['high'].iloc[0]:.1f}]"
        for ood, part in rows.groupby("ood", sort=False)
    }


def _accuracy(group: pd.DataFrame) -> list[dict[str, Any]]:
    """How far each loss at its best stage is from softmax at its best, in points; and the same of
    the stages that the recipe has for each of them, of which the promise is."""
    models = group.drop_duplicates(["stage", "loss", "seed"])
    mean = 100 * models.groupby(["loss", "stage"], sort=False)["accuracy"].mean()
    means = {loss: mean[loss] for loss in LOSSES if loss in mean.index}
    if "softmax" not in means:
        return []

    def shipped(loss: str) -> float:
        whole = BOTH if LOSSES[loss].head_first else ALL
        return float(means[loss].reindex([HEAD, whole]).max())

    rows = []
    for loss in means:
        if loss == "softmax":
            continue
        gap = shipped(loss) - shipped("softmax")
        rows.append(
            {
                "loss": loss,
                "stage": means[loss].idxmax(),
                "gap": float(means[loss].max() - means["softmax"].max()),
                "shipped": gap,
                "holds": not gap < -TOLERATED,
            }
        )
    return rows


def _near(group: pd.DataFrame) -> list[dict[str, Any]]:
    """How far the own score of each loss is from energy on softmax, on the near OOD set, each at
    its best stage, in points."""
    near = group[group["near"]]

    def best(loss: str, detector: str) -> float:
        rows = near[(near["loss"] == loss) & (near["detector"] == detector)]
        return 100 * float(rows.groupby("stage")["AUROC"].mean().max()) if len(rows) else np.nan

    energy = best("softmax", "EnergyBased")
    found = {loss: best(loss, LOSSES[loss].score) for loss in LOSSES if loss != "softmax"}
    return [
        {"loss": loss, "gap": value - energy} for loss, value in found.items() if value == value
    ]


def _best(group: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each OOD set, the highest AUROC of all stages, losses and detectors, and the highest of a
    distance head with its own score."""
    rows = []
    for ood, part in group.groupby("ood", sort=False):
        mean = part.groupby(["stage", "loss", "detector"], sort=False)["AUROC"].mean().dropna()
        own = [key for key in mean.index if key[1] != "softmax" and LOSSES[key[1]].score == key[2]]
        stage, loss, detector = mean.idxmax()
        rows.append(
            {
                "ood": ood,
                "what": f"{detector} on {loss} ({stage})",
                "value": 100 * float(mean.max()),
                "own": 100 * float(mean[own].max()) if own else None,
                "which": "{1} ({0})".format(*mean[own].idxmax()) if own else "",
            }
        )
    return rows
