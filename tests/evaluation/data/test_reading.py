"""Every image is read once before work: what does not decode, what is twice, what is left."""

import pytest

from isomax_evaluation import data
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Silent

from ...image_folders import make_folder

QUIET = Silent()


def read(images, skip=False):
    return data.readable([images], skip, 0, QUIET)[0]


@pytest.fixture
def splits(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        make_folder(tmp_path / split, ("ash", "b [old]"), 3, seed=seed)
    return tmp_path


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


def test_what_does_not_decode_is_counted_among_all_of_its_name(splits):
    for path in (splits / "train/ash/001.jpg", splits / "test/ash/000.jpg"):
        path.write_bytes(b"no image")
    found = data.open_splits(str(splits))
    with pytest.raises(InputError, match=r"2 of 12 images of .* do not decode") as error:
        data.readable([found.train, found.test], False, 0, QUIET)
    assert "--skip-bad-images" in str(error.value)
    train, test = data.readable([found.train, found.test], True, 0, QUIET)
    assert (len(train), len(test)) == (5, 5)
