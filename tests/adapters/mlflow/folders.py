"""Output folders made by hand."""

import json


def write_epochs(folder, count):
    rows = [{"epoch": e + 1, "time": 1e9 + e, "train_loss": 1 / (e + 1)} for e in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(folder):
    summary = {"test_accuracy": 0.5, "guarantee": "established"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "model").mkdir()
    (folder / "model" / "calibration.json").write_text("{}")
