"""What came out of a training, in a few lines for whoever started it."""

from pathlib import Path
from typing import Any

from isomax_evaluation.output.files import read_json, read_lines

#: entry of ``summary.json``, a share -> what it measures
MEASURED = {
    "test_accuracy": "accuracy",
    "test_ECE": "expected calibration error",
    "test_false_alarm_rate": "test images that are rejected",
    "val_accuracy": "accuracy on the images that chose the weights",
}


def outcome(run: Path) -> list[str]:
    """Lines of what was measured, and of the classes that it went worst for.

    :param run: output folder of a training
    """
    summary = read_json(run / "summary.json")
    width = max(map(len, MEASURED.values()))
    lines = [
        f"{text:{width}} {summary[key]:6.1%}" for key, text in MEASURED.items() if key in summary
    ]
    classes: dict[str, dict[str, Any]] = summary.get("classes", {})
    tested = {name: rates for name, rates in classes.items() if rates["images"]}
    if tested:
        least = min(tested, key=lambda name: tested[name]["recall"])
        most = max(tested, key=lambda name: tested[name]["false_alarm_rate"])
        if tested[least]["recall"] < 1:
            lines.append(f"recognised least: {_of(least, tested[least], 'recall')}")
        if tested[most]["false_alarm_rate"] > 0:
            lines.append(f"rejected most: {_of(most, tested[most], 'false_alarm_rate')}")
    if "kept" in summary:
        lines.append(f"kept: {summary['kept']}{_instead_of(run, summary['kept'])}")
    lines.append(f"all numbers: {run / 'summary.json'}")
    if tested:
        lines.append(f"each class: {run / 'classes.csv'}")
    return lines


def _instead_of(run: Path, kept: str) -> str:
    """What the training of the whole network came to, if what was before it is kept."""
    rows = read_lines(run / "metrics.jsonl")
    epochs = [row for row in rows if "lr" in row and "val_accuracy" in row]
    if not epochs or kept.startswith("epoch"):
        return ""
    best = max(epochs, key=lambda row: float(row["val_accuracy"]))
    return f", rather than epoch {best['epoch']} with {best['val_accuracy']:.1%} on the same images"


def _of(name: str, rates: dict[str, Any], which: str) -> str:
    return f"{name}, {rates[which]:.1%} of {rates['images']}"
