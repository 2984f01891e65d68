"""Every image is read once before work: what does not decode, what is twice, what is left."""

import shutil

import pytest
from rich.progress import Progress

from isomax_evaluation import data
from isomax_evaluation.output.errors import InputError

from ...image_folders import make_folder

QUIET = Progress(disable=True)


def read(images, skip=False):
    return data.readable(images, skip, 0, QUIET)


@pytest.fixture
def splits(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        make_folder(tmp_path / split, ("ash", "b [old]"), 3, seed=seed)
    return tmp_path


def opened(root):
    found = data.open_splits(str(root))
    sets = {"train": found.train, "test": found.test, "validation": found.held_out}
    return {kind: read(images) for kind, images in sets.items()}


def test_sets_without_a_common_file_are_apart(splits):
    data.check_apart(**opened(splits))
    data.check_apart(train=read(data.open_splits("digits").train), test=None)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("train/ash/001.jpg", "test/ash/other.jpg", "1 test images of .* are also train images"),
        # under another class too
        ("train/ash/001.jpg", "test/b [old]/other.jpg", "1 test images of .* also train"),
        ("train/ash/001.jpg", "val/ash/other.jpg", "1 validation images of .* also train"),
        ("val/ash/001.jpg", "test/ash/other.jpg", "1 validation images of .* also test"),
    ],
)
def test_a_file_that_is_in_two_sets_is_refused_with_both_names(splits, source, target, message):
    shutil.copy(splits / source, splits / target)
    with pytest.raises(InputError, match=message) as error:
        data.check_apart(**opened(splits))
    assert str(splits / source) in str(error.value)
    assert str(splits / target) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["train", "val", "test"])
def test_of_a_class_or_a_set_without_a_readable_image_nothing_is_left(splits, kind):
    """Left out, they would be trained as a class, or tested on nothing."""
    broken = splits / kind if kind == "test" else splits / kind / "b [old]"
    for path in broken.rglob("*.jpg"):
        path.write_bytes(b"no image")
    found = data.open_splits(str(splits))
    train, test = read(found.train, skip=True), read(found.test, skip=True)
    if kind == "val":  # of those, another class is enough
        data.check_counts(train, test)
        return
    with pytest.raises(InputError) as error:
        data.check_counts(train, test)
    if kind == "train":
        expected = "1 of 2 classes of {} have no image to train on that can be read: b [old]; "
    else:
        expected = "{} has no image to test on that can be read"
    assert str(error.value).startswith(expected.format(splits.name))
