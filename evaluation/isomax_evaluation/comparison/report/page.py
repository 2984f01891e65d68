"""The report: one self-contained HTML file with the tables, plots and examples."""

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from plotly.offline import get_plotlyjs

from isomax_adapters.runtime.decoding import RGB
from isomax_evaluation.comparison.report.plots import ID, AllScores, write_plots
from isomax_evaluation.comparison.report.rows import CHANCE, HIGHER_IS_BETTER, table_rows, verdicts
from isomax_evaluation.comparison.report.tables import Comparison
from isomax_evaluation.data.images import Images
from isomax_evaluation.detection.testing.trial import TestSets
from isomax_evaluation.output.files import write_whole

QUANTILES = 500  # of each set of scores, so that the file stays small whatever their number
EXAMPLES = 8
CLASSES = 100  # rows of them


def write_report(
    done: Comparison,
    scores: AllScores,
    tests: TestSets,
    trained: str | None,
    chosen_values: Sequence[dict[str, object]] = (),
) -> Path:
    """``report.html`` in the output folder: works from the file, offline.

    :param scores: of the first seed of each model
    :param trained: the architecture that was trained with each loss, if one was
    :param chosen_values: detector, values and runs of each choice of hyperparameters
    """
    results = done.results
    write_plots(done.output, results, scores)
    environment = Environment(
        loader=PackageLoader("isomax_evaluation.comparison.report", "templates"),
        autoescape=select_autoescape(),
    )
    environment.filters["words"] = _words
    rows = table_rows(results, done.intervals, done.costs)
    html = environment.get_template("report.html").render(
        rows=_best_first(rows),
        verdicts=verdicts(rows),
        metrics=list(HIGHER_IS_BETTER),
        better=[(3 + place, higher) for place, higher in enumerate(HIGHER_IS_BETTER.values())],
        seeds=int(results["seed"].nunique()),
        chance=CHANCE,
        auroc_column=3 + list(HIGHER_IS_BETTER).index("AUROC"),
        trained=trained,
        tuned_on=tests.tuning.name if tests.tuning else None,
        tuned=chosen_values,
        classes=_worst_classes(done.classes),
        files=_by_row(done.deployable),
        chosen=done.chosen,
        most_classes=CLASSES,
        id_name=tests.known.name,
        left_out=done.left_out.to_dict("records"),
        errors=done.errors.to_dict("records"),
        examples=_examples(scores, rows, tests.known, tests.unknown),
        data=_for_script(_quantiles(scores)),
        points=_for_script(
            [{k: None if v != v else v for k, v in row.items()} for row in rows]  # NaN is no JSON
        ),
        id_key=ID,
        plotly=get_plotlyjs(),
    )
    path = done.output / "report.html"
    write_whole(
        path, lambda partial: partial.write_text(html, encoding="utf-8", errors="backslashreplace")
    )
    return path


def _best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each OOD set by AUROC; what has none comes last."""
    sets = list(dict.fromkeys(row["ood"] for row in rows))
    return sorted(rows, key=lambda row: (sets.index(row["ood"]), -np.nan_to_num(row["AUROC"])))


def _words(name: str) -> list[str]:
    """The parts of a name, between which a narrow column breaks it."""
    return re.split(r"(?<=[a-z])(?=[A-Z])|(?<=[-+_/])", name)


def _by_row(deployable: pd.DataFrame) -> dict[tuple[str, str], dict[str, str]]:
    return {
        (row["loss"], row["detector"]): {key: row[key] for key in ("obstacle", "command")}
        for row in deployable.to_dict("records")
    }


def _worst_classes(classes: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean over seeds of each model and class, those that are rejected most often first."""
    if classes.empty:
        return []
    by = classes.groupby(["loss", "class"], sort=False)[["images", "recall", "false_alarm_rate"]]
    rows = by.mean().reset_index().sort_values(
        ["false_alarm_rate", "recall"], ascending=[False, True], kind="stable"
    )  # fmt: skip
    found: list[dict[str, Any]] = rows.head(CLASSES).to_dict("records")
    return found


def _for_script(content: Any) -> str:
    """JSON that a script element may hold: "</" would end it."""
    return json.dumps(content, allow_nan=False).replace("</", "<\\/")


def _quantiles(scores: AllScores) -> dict[str, dict[str, list[float]]]:
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
    scores: AllScores,
    rows: list[dict[str, Any]],
    id_test: Images,
    ood_sets: Sequence[Images],
) -> list[dict[str, Any]]:
    """The ID images scored most OOD and the OOD images scored most ID, by the best IsoMax row."""
    ours = [row for row in rows if row["loss"] != "softmax"] or rows
    strips = []
    for images in ood_sets:
        there = [
            r
            for r in ours
            if r["ood"] == images.name
            and not np.isnan(r["AUROC"])
            and f"{r['loss']}, {r['detector']}" in scores
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
    image = _picture(image) if isinstance(image, torch.Tensor) else RGB(image)
    image.thumbnail((96, 96))
    if image.width < 64:
        image = image.resize((64, 64 * image.height // image.width), resample=0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _picture(tensor: torch.Tensor) -> Image.Image:
    """A finished tensor, whose preprocessing is not known, between its extremes."""
    pixels = tensor.detach().float().reshape(-1, *tensor.shape[-2:])[:3]
    low, high = pixels.min(), pixels.max()
    array = ((pixels - low) / (high - low).clamp(min=1e-9) * 255).byte().numpy()
    return Image.fromarray(array.transpose(1, 2, 0) if len(array) == 3 else array[0])
