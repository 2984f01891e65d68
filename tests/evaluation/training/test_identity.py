"""A run goes on with the images it was begun with, and with no others: by what they are."""

import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from isomax_evaluation import train
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...image_folders import make_folder
from ...settings import grouped

ARGUMENTS = grouped(
    {
        "model": "test_resnet",
        "recipe": replace(RECIPES["digits"], epochs=1, batch_size=16),
        "image_size": 32,
        "alpha": 0.2,
        "workers": 0,
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of splits, and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, (split, count) in enumerate((("train", 20), ("val", 24), ("test", 4))):
        make_folder(folder / "photos" / split, ("ash", "birch"), count, seed=seed)
    train(str(folder / "photos"), folder / "out", **ARGUMENTS)
    return folder


@pytest.fixture
def begun(trained, tmp_path, monkeypatch):
    """The same elsewhere, in the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_each_image_was_for_is_written_down(begun):
    table = pd.read_csv("out/splits.csv")
    assert table["split"].value_counts().to_dict() == {
        "train": 40, "validation": 24, "calibration": 24, "test": 8,
    }  # fmt: skip
    assert not table["path"].duplicated().any()
    digests = json.loads((begun / "out/settings.json").read_text())["digests"]
    assert set(digests) == {"train", "selection", "calibration", "test"}
    assert len(set(digests.values())) == 4


@pytest.mark.parametrize("given", ["photos/", "./photos", "{}/photos", "~/photos", "x/../photos"])
def test_a_folder_by_another_way_is_the_same(begun, given, monkeypatch):
    monkeypatch.setenv("HOME", str(begun))
    (begun / "x").mkdir()
    before = (begun / "out/summary.json").stat().st_mtime_ns
    train(given.format(begun), "out", **ARGUMENTS)
    assert (begun / "out/summary.json").stat().st_mtime_ns == before


def test_it_is_the_same_from_elsewhere_and_where_it_was_moved(begun, monkeypatch):
    (begun / "elsewhere").mkdir()
    monkeypatch.chdir(begun / "elsewhere")
    train("../photos", "../out", **ARGUMENTS)
    shutil.move(begun / "photos", begun / "pictures")
    train("../pictures", "../out", **ARGUMENTS)


def moved(root):
    os.rename(root / "train/ash/003.jpg", root / "train/birch/corrected.jpg")


def replaced(root):
    shutil.rmtree(root / "test")
    make_folder(root / "test", ("ash", "birch"), 4, seed=9)


def calibrated_otherwise(root):
    shutil.rmtree(root / "val")
    make_folder(root / "val", ("ash", "birch"), 24, seed=9)


def renamed(root):
    for split in ("train", "val", "test"):
        os.rename(root / split / "ash", root / split / "acer")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (moved, "train"),
        (replaced, "test"),
        (calibrated_otherwise, "calibration and selection"),
        (renamed, "train and calibration and selection and test"),
    ],
)
def test_what_has_changed_is_named_with_the_way_out(begun, change, named):
    """Finished or not; and what was there before is as it was."""
    shutil.copytree("photos", "kept")
    change(begun / "photos")
    for files in ((), ("model", "summary.json")):
        for file in files:
            shutil.rmtree(f"out/{file}", ignore_errors=True)
        with pytest.raises(
            InputError, match=f"the {named} images of photos have changed .*another output folder"
        ):
            train("photos", "out", **ARGUMENTS)
    shutil.rmtree("photos")
    shutil.move("kept", "photos")
    train("photos", "out", **ARGUMENTS)


@pytest.mark.parametrize("place", ["photos", "photos/out", "photos/train/out", "./x/../photos/o"])
def test_what_is_written_does_not_lie_in_what_is_read(begun, place):
    (begun / "x").mkdir()
    with pytest.raises(InputError, match=r"lies in photos, so that .* choose one outside of it"):
        train("photos", place, **ARGUMENTS)


def test_the_home_folder_is_that_of_the_user_for_what_is_written_too(begun, monkeypatch):
    monkeypatch.setenv("HOME", str(begun / "home"))
    train("photos", "~/run", **ARGUMENTS)
    assert (begun / "home/run/classes.csv").is_file()
    assert not (begun / "~").exists()
