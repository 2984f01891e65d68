"""What a training says of its threshold and of each class; what it does not begin with."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from isomax_evaluation import train
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...image_folders import make_folder
from ...settings import grouped

ARGUMENTS = {
    "model": "test_resnet",
    "recipe": replace(RECIPES["digits"], epochs=2, batch_size=16, augment="none"),
    "image_size": 32,
    "alpha": 0.2,
    "workers": 0,
}


def trained(root, output, **arguments):
    train(str(root), output, **grouped(ARGUMENTS | arguments))
    summary = json.loads((output / "summary.json").read_text())
    calibration = json.loads((output / "model/calibration.json").read_text())
    return summary, calibration


@pytest.mark.parametrize(("groups", "guarantee"), [(12, "not established"), (40, "established")])
def test_the_guarantee_is_for_an_image_of_a_fresh_group(groups, guarantee, tmp_path, capfd):
    for number in range(groups):
        name = ("ash", "birch")[number % 2]
        made = make_folder(tmp_path / "made" / str(number), (name,), 4, seed=number)
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        for path in made.rglob("*.jpg"):
            path.rename(tmp_path / "set" / name / f"p{number:02}-{path.name}")
    summary, calibration = trained(
        tmp_path / "set", tmp_path / "out", group_by="3", val_share=0.25,
        recipe=replace(ARGUMENTS["recipe"], epochs=1, keep="best"),
    )  # fmt: skip
    assert not {"kept", "val_accuracy"} & set(summary)  # too few to choose by
    assert summary["guarantee"] == calibration["guarantee"] == guarantee
    said = capfd.readouterr().err
    assert f"{groups} groups" in said
    assert "nothing is selected, and the last epoch is kept" in said
    assert ("guarantee not established" in said) == (guarantee == "not established")
    splits = pd.read_csv(tmp_path / "out/splits.csv")
    splits["patient"] = splits["path"].str.extract(r"/(p\d\d)-")[0]
    assert splits.groupby("patient")["split"].nunique().max() == 1


def test_images_that_are_unlike_the_training_ones_calibrate_their_own_kind(tmp_path):
    """Training images of one camera; ``val`` and ``test`` of others, with other colours."""
    for seed, (split, names) in enumerate(
        (("train", ("ash", "birch")), ("val", ("x", "y", "ash")), ("test", ("x", "y", "ash")))
    ):
        # the third colour, for a class whose training images have the first
        made = make_folder(tmp_path / "made" / split, names, 30, seed=seed)
        (tmp_path / "set" / split).mkdir(parents=True)
        shutil.move(made / "ash", tmp_path / "set" / split / "ash")
        if split == "train":
            shutil.move(made / "birch", tmp_path / "set" / split / "birch")
    with_val, _ = trained(tmp_path / "set", tmp_path / "a")
    shutil.rmtree(tmp_path / "set/val")
    without, _ = trained(tmp_path / "set", tmp_path / "b", val_share=0.2)
    assert with_val["test_false_alarm_rate"] <= 0.3  # of 30 images, alpha is 0.2
    assert without["test_false_alarm_rate"] >= 0.5


def test_a_class_that_is_rejected_is_in_every_table_and_warned_of(tmp_path, capfd):
    make_folder(tmp_path / "set/train", ("ash", "birch", "rare"), 40)
    make_folder(tmp_path / "set/test", ("ash", "birch"), 60, seed=1)
    (tmp_path / "set/test/rare").mkdir()
    for number in range(12):  # between the colours of two other classes
        pixels = np.random.default_rng(number).normal((85, 165, 120), 5, (24, 24, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"set/test/rare/{number}.png")
    summary, _ = trained(tmp_path / "set", tmp_path / "out", val_share=0.2)
    table = pd.read_csv(tmp_path / "out/classes.csv").set_index("class")
    assert list(table.columns) == ["images", "recall", "false_alarm_rate"]
    assert table["images"].to_dict() == {"ash": 60, "birch": 60, "rare": 12}
    for name, row in summary["classes"].items():
        assert row == pytest.approx(table.loc[name].to_dict())
    assert table.loc["rare", "false_alarm_rate"] > 0.6
    overall = (table["images"] * table["false_alarm_rate"]).sum() / 132
    assert summary["test_false_alarm_rate"] == pytest.approx(overall)
    said = capfd.readouterr().err
    assert "warning: isomax, seed 0: images of " in said
    assert "rare " in said
    assert "more often than alpha = 0.2" in said


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("train/b [old]", "1 of 2 classes of set have no image to train on .*: b [[]old[]]"),
        ("test", "set has no image to test on that can be read"),
        ("val", "takes 4 validation images, there are 0; put more into its validation set"),
    ],
)
def test_what_skipping_leaves_is_looked_at_before_work(broken, message, tmp_path, capfd):
    for seed, split in enumerate(("train", "val", "test")):
        make_folder(tmp_path / "set" / split, ("ash", "b [old]"), 10, seed=seed)
    for path in (tmp_path / "set" / broken).rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=message):
        train(
            str(tmp_path / "set"),
            tmp_path / "out",
            **grouped(ARGUMENTS | {"skip_bad_images": True}),
        )
    assert not (tmp_path / "out").exists()
    assert "left out" in capfd.readouterr().err
