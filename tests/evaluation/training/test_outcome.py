"""What a training says at its end."""

import json

from isomax_evaluation.training.outcome import outcome


def said(folder, **summary):
    (folder / "summary.json").write_text(json.dumps(summary))
    return outcome(folder)


def test_the_classes_that_it_went_worst_for_are_named(tmp_path):
    classes = {
        "ash": {"images": 10, "recall": 0.9, "false_alarm_rate": 0.0},
        "birch": {"images": 8, "recall": 0.75, "false_alarm_rate": 0.0},
        "cedar": {"images": 20, "recall": 1.0, "false_alarm_rate": 0.1},
        "dogwood": {"images": 0, "recall": None, "false_alarm_rate": None},
    }
    lines = said(tmp_path, test_accuracy=0.91234, classes=classes, kept="the head alone, 20 epochs")
    assert lines[0].split() == ["accuracy", "91.2%"]
    assert lines[1:4] == [
        "recognised least: birch, 75.0% of 8",
        "rejected most: cedar, 10.0% of 20",
        "kept: the head alone, 20 epochs",
    ]
    assert lines[4:] == [
        f"all numbers: {tmp_path / 'summary.json'}",
        f"each class: {tmp_path / 'classes.csv'}",
    ]


def test_that_the_longer_training_was_in_vain_is_said(tmp_path):
    rows = [
        {"epoch": 20, "head_val_accuracy": 0.9},
        *({"epoch": n, "lr": 0.1, "val_accuracy": value} for n, value in ((1, 0.7), (2, 0.8))),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = said(tmp_path, kept="the head alone, 20 epochs")
    assert lines[0].endswith(
        "the head alone, 20 epochs, rather than epoch 2 with 80.0% on the same images"
    )
    assert said(tmp_path, kept="epoch 2")[0] == "kept: epoch 2"


def test_without_test_images_or_faults_nothing_is_named(tmp_path):
    assert len(said(tmp_path, val_accuracy=1.0)) == 2
    perfect = {"ash": {"images": 3, "recall": 1.0, "false_alarm_rate": 0.0}}
    assert not [line for line in said(tmp_path, classes=perfect) if "ash" in line]
