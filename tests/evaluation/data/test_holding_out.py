"""Held-out images choose or calibrate, never both; what is promised of them is said."""

import numpy as np
import pytest

from isomax_evaluation import data
from isomax_evaluation.output.errors import InputError

from ...image_folders import make_folder


def names_of(images):
    return {images.name_of(at) for at in range(len(images))}


def test_a_share_of_the_training_images_is_parted_by_class(tmp_path):
    splits = data.open_splits(str(make_folder(tmp_path, ("a", "b"), 130)))
    assert (len(splits.train), len(splits.test)) == (208, 52)
    divided = data.divide(splits.train, None, 9, 0.25, 0)
    sets = [divided.training, divided.selection, divided.calibration, splits.test]
    assert [len(images) for images in sets] == [156, 26, 26, 52]
    assert len(set().union(*map(names_of, sets))) == 260
    for images in sets:
        assert np.ptp(np.bincount(images.labels)) <= 1
    assert divided.established
    assert divided.notes == ()
    again = data.divide(splits.train, None, 9, 0.25, 0)
    assert names_of(again.calibration) == names_of(divided.calibration)
    table = data.table_of_splits([("train", divided.training), ("none", None)])
    assert set(table["path"]) == names_of(divided.training)
    assert set(table["class"]) == {"a", "b"}


def test_of_val_and_test_val_is_held_out_and_nothing_of_train(tmp_path):
    for seed, (split, count) in enumerate((("train", 5), ("valid", 25), ("Test", 4))):
        make_folder(tmp_path / split, ("a", "b"), count, seed=seed)
    splits = data.open_splits(str(tmp_path))
    assert len(splits.test) == 8
    divided = data.divide(splits.train, splits.held_out, 19, 0.1, 0)
    assert len(divided.training) == 10
    held_out = names_of(divided.calibration) | names_of(divided.selection)
    assert held_out == names_of(splits.held_out)
    assert all("/valid/" in name for name in held_out)


def test_too_few_to_do_both_calibrate(tmp_path):
    train = data.open_splits(str(make_folder(tmp_path, ("a", "b"), 40))).train
    divided = data.divide(train, None, 9, 0.2, 0)
    assert divided.selection is None
    assert divided.established
    assert "nothing is selected, and the last epoch is kept" in divided.notes[0]


@pytest.mark.parametrize(
    ("val", "advice"),
    [(0, "hold out more of them"), (4, "put more into its validation set")],
)
def test_too_few_to_calibrate_are_refused_with_advice_that_helps(tmp_path, val, advice):
    make_folder(tmp_path / "train", ("a", "b"), 10)
    make_folder(tmp_path / "test", ("a", "b"), 4, seed=1)
    if val:
        make_folder(tmp_path / "val", ("a", "b"), val, seed=2)
    splits = data.open_splits(str(tmp_path))
    with pytest.raises(InputError, match=f"takes 19 validation .*{advice}.*, or choose a larger"):
        data.divide(splits.train, splits.held_out, 19, 0.1, 0)


def patients(root, count, images=6):
    """Patients of several images each, of one class each."""
    for number in range(count):
        made = make_folder(root / f"{number}", ("a", "b")[number % 2 :][:1], images, seed=number)
        for path in made.rglob("*.jpg"):
            place = root / "set" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            path.rename(place / f"p{number:03}_{path.name}")
    return data.open_splits(str(root / "set"), group_by="4")


def test_no_split_parts_a_group_and_one_image_of_each_calibrates(tmp_path):
    splits = patients(tmp_path, 60)
    divided = data.divide(splits.train, None, 4, 0.5, 0)
    sets = [divided.training, divided.selection, divided.calibration, splits.test]
    groups = [set(images.groups) for images in sets]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 60
    assert len(groups[2]) == len(divided.calibration) >= 4
    assert divided.established
    assert "one image of each of" in divided.notes[-1]


def test_with_few_groups_the_guarantee_is_not_established(tmp_path):
    splits = patients(tmp_path, 20)
    divided = data.divide(splits.train, None, 19, 0.5, 0)
    assert not divided.established
    assert len(divided.calibration) == 6 * 8
    assert "guarantee not established: 8 groups calibrate" in divided.notes[-1]
