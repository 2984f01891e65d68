"""The page of results: made of small tables, and of nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.benchmarks.claims.fine_tuning import sections
from isomax_adapters.pytorch_ood import NAMES
from isomax_evaluation.comparison.report.rows import needs
from isomax_evaluation.detection.testing.metrics import METRICS
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import read_json, write_whole
from isomax_evaluation.output.tables import read_table
from isomax_evaluation.training.losses import LOSSES

# the papers' names, and what the same is called here
PAPER_SETS = {
    "Tiny ImageNet": ("tiny-imagenet-200", "TinyImageNetResize"),
    "LSUN": ("LSUNResize",),
    "CIFAR-100": ("CIFAR100", "cifar100"),
    "SVHN": ("SVHN", "svhn"),
}
PAPER_METRICS = {"AUPR": "AUPR-OUT"}  # their code scores with OOD images as the positive class


def write_page(folder: Path, page: Path) -> Path:
    """Make the page of the tables; every number in it comes from them.

    :param folder: what :func:`.gathering.gather` wrote, and ``paper.csv``
    :param page: the Markdown file to write
    :raises InputError: if a table is missing
    """
    names = ("detection", "intervals", "costs", "inference", "paper")
    if missing := [name for name in names if not (folder / f"{name}.csv").is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; gather them first with --from")
    tables = {name: read_table(folder / f"{name}.csv") for name in names}
    setting = read_json(folder / "setting.json")
    tuned = folder / "finetuning.csv"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    detection = tables["detection"]
    as_long = detection["epochs"] == setting["recipe"]["epochs"]
    as_many = detection["per_class"] == setting["per_class"]
    main = detection[as_long & as_many]
    text = environment.get_template("results.md").render(
        setting=setting,
        model=str(main["model"].iloc[0]),
        seeds=int(main["seed"].nunique()),
        losses=[loss for loss in LOSSES if loss in set(main["loss"])],
        missing=[loss for loss in LOSSES if loss not in set(main["loss"])],
        missing_detectors=[name for name in NAMES if name not in set(main["detector"])],
        error=_error_of_a_difference(main, setting["test_images"]),
        accuracy=_accuracy(detection[as_long]),
        lengths=_lengths(detection[as_many]),
        own=_own(main),
        orders=_orders(main),
        best=_best(main, tables["intervals"]),
        needs=_needs(tables["costs"]),
        inference=tables["inference"].to_dict("records"),
        paper=_paper(tables["paper"], main),
        tuned=sections(read_table(tuned)) if tuned.is_file() else [],
        tuned_commands=read_json(tuned.with_suffix(".json"))["commands"] if tuned.is_file() else [],
        metrics=METRICS,
        spread=spread,
    )
    write_whole(page, lambda partial: partial.write_text(text, encoding="utf-8"))
    return page


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation, in percent."""
    array = 100 * np.asarray(list(values), dtype=float)
    deviation = f" ± {array.std(ddof=1):.1f}" if len(array) > 1 else ""
    return f"{array.mean():.1f}{deviation}"


def _of_models(detection: pd.DataFrame) -> pd.DataFrame:
    """One row per trained model."""
    return detection.drop_duplicates(["epochs", "per_class", "loss", "seed"])


def _accuracy(detection: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 1: accuracy by examples per class, with the gap to softmax in points."""
    rows = []
    for per_class, group in _of_models(detection).groupby("per_class"):
        by_loss = {loss: part["accuracy"].to_numpy() for loss, part in group.groupby("loss")}
        gap = {
            loss: 100 * float(values.mean() - by_loss["softmax"].mean())
            for loss, values in by_loss.items()
            if "softmax" in by_loss
        }
        rows.append({"per_class": int(str(per_class)), "accuracy": by_loss, "gap": gap})
    return rows


def _error_of_a_difference(main: pd.DataFrame, images: int) -> float:
    """Standard error, in points, of the difference of two accuracies on so many test images."""
    accuracy = float(_of_models(main)["accuracy"].mean())
    return 100 * float(np.sqrt(2 * accuracy * (1 - accuracy) / images))


def _lengths(detection: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy and AUROC of each loss with its own score by length of training, and how far the
    AUROC is above that of softmax."""
    rows = []
    for epochs, trained in detection.groupby("epochs"):
        softmax = _own_auroc(trained[trained["loss"] == "softmax"])
        for loss in [loss for loss in LOSSES if loss in set(trained["loss"])]:
            group = trained[trained["loss"] == loss]
            auroc = _own_auroc(group)
            rows.append(
                {
                    "epochs": int(str(epochs)),
                    "loss": loss,
                    "seeds": int(group["seed"].nunique()),
                    "accuracy": _of_models(group)["accuracy"].to_list(),
                    "AUROC": auroc,
                    "gap": {
                        ood: 100 * float(np.mean(values) - np.mean(softmax[ood]))
                        for ood, values in auroc.items()
                        if ood in softmax and loss != "softmax"
                    },
                }
            )
    return rows


def _own_auroc(detection: pd.DataFrame) -> dict[str, list[float]]:
    """By OOD set, of losses with the score that the papers pair with them; one value per seed."""
    own = detection[detection["detector"] == detection["loss"].map(lambda n: LOSSES[n].score)]
    return {str(ood): part["AUROC"].to_list() for ood, part in own.groupby("ood", sort=False)}


def _orders(main: pd.DataFrame) -> list[dict[str, Any]]:
    """The losses by AUROC with their own scores, per OOD set, best first."""
    by_loss = {loss: _own_auroc(group) for loss, group in main.groupby("loss")}
    return [
        {
            "ood": ood,
            "losses": sorted(by_loss, key=lambda loss: -float(np.mean(by_loss[loss][ood]))),
        }
        for ood in main["ood"].unique()
    ]


def _own(main: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 4: each loss with the score that its paper pairs with it, per OOD set."""
    rows = []
    for ood, group in main.groupby("ood", sort=False):
        for loss in [loss for loss in LOSSES if loss in set(group["loss"])]:
            part = group[(group["loss"] == loss) & (group["detector"] == LOSSES[loss].score)]
            metrics = {name: part[name].to_list() for name in METRICS}
            rows.append({"ood": ood, "loss": loss, "detector": LOSSES[loss].score, **metrics})
    return rows


def _best(main: pd.DataFrame, intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """The three best detectors of each loss on each OOD set."""
    at = intervals.set_index(["ood", "loss", "detector"])
    rows = []
    for (ood, loss), group in main.groupby(["ood", "loss"], sort=False):
        means = group.groupby("detector")["AUROC"].mean().dropna().sort_values(ascending=False)
        top = [
            f"{name} {100 * value:.1f} [{100 * at.loc[(ood, loss, name), 'AUROC low']:.1f}, "
            f"{100 * at.loc[(ood, loss, name), 'AUROC high']:.1f}]"
            for name, value in means.head(3).items()
        ]
        rows.append({"ood": ood, "loss": loss, "top": top, "count": len(means)})
    return rows


def _needs(costs: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 3: what each detector needs, once per detector."""
    rows = []
    for row in costs.drop_duplicates("detector").itertuples():
        found: dict[str, Any] = {"detector": row.detector, "needs": needs(row)}
        found["passes"] = f"{row.forward:.0f} + {row.backward:.0f}"
        found["time"] = f"{row.relative_time:.2f}"
        rows.append(found)
    return sorted(rows, key=lambda row: (row["needs"] != "nothing", row["detector"].lower()))


def _paper(paper: pd.DataFrame, main: pd.DataFrame) -> list[dict[str, Any]]:
    """The papers' numbers with ours beside them where both exist, and the difference in points."""
    rows = []
    for row in paper.astype(object).where(paper.notna(), None).to_dict("records"):
        ours = main[(main["loss"] == row["loss"]) & (main["detector"] == row["detector"])]
        if row["ood"]:
            ours = ours[ours["ood"].isin(PAPER_SETS.get(row["ood"], (row["ood"],)))]
        else:
            ours = _of_models(ours)
        metric = PAPER_METRICS.get(row["metric"], row["metric"])
        values = ours[metric].to_list() if metric in ours else []
        gap = 100 * float(np.mean(values)) - row["mean"] if values else None
        rows.append(row | {"ours": values, "gap": gap})
    return rows
