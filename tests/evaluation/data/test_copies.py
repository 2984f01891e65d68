"""Images that are there more than once: refused with all pairs in a table, or dropped."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from isomax_evaluation import data
from isomax_evaluation.data.copies import settle
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Silent
from isomax_evaluation.output.settings import check_settings

from ...image_folders import make_folder

QUIET = Silent()
DROP = Reading(drop_duplicates=True)


@pytest.fixture
def splits(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        make_folder(tmp_path / "id" / split, ("ash", "b [old]"), 6, seed=seed)
    make_folder(tmp_path / "ood", ("x",), 6, seed=9)
    return tmp_path


def settled(root, reading=Reading(), ood=()):
    found = data.open_splits(str(root / "id"))
    parts = {"test": found.test, "validation": found.held_out, "training": found.train}
    ood = [data.open_images(str(root / name)) for name in ood]
    read = data.readable([*parts.values(), *ood], False, 0, QUIET)
    return settle(
        dict(zip(parts, read, strict=False)), reading, root / "pairs.csv", read[len(parts) :]
    )


def test_sets_without_a_common_image_are_as_they_were(splits):
    found = settled(splits, ood=["ood"])
    assert [len(images) for images in found.parts.values()] == [12, 12, 12]
    assert len(found.ood[0]) == 6
    assert not found.notes
    assert not (splits / "pairs.csv").exists()


@pytest.mark.parametrize(
    ("source", "target", "part", "other"),
    [
        ("train/ash/001.jpg", "test/ash/other.jpg", "training", "test"),
        ("train/ash/001.jpg", "val/ash/other.jpg", "training", "validation"),
        ("val/ash/001.jpg", "test/ash/other.jpg", "validation", "test"),
    ],
)
def test_an_image_in_two_parts_is_refused_or_stays_in_the_first(
    splits, source, target, part, other
):
    shutil.copy(splits / "id" / source, splits / "id" / target)
    message = f"1 of the {part} images of id are also images of its {other} part: "
    with pytest.raises(InputError, match=message) as error:
        settled(splits)
    assert str(splits / "id" / source) in str(error.value)
    assert str(splits / "id" / target) in str(error.value)
    assert str(splits / "pairs.csv") in str(error.value)
    assert "\n" not in str(error.value)
    (row,) = pd.read_csv(splits / "pairs.csv").to_dict("records")
    assert {row["path"], row["path of copy"]} == {
        str(splits / "id" / name) for name in (source, target)
    }
    found = settled(splits, DROP)
    assert sum(map(len, found.parts.values())) == 36
    assert found.notes == [f"1 {part} images left out, copies of others"]


def test_the_same_pixels_in_other_bytes_are_the_same_image(splits):
    source = splits / "id/train/ash/001.jpg"
    Image.open(source).save(splits / "id/test/ash/other.png")
    Image.open(splits / "id/test/ash/other.png").save(splits / "id/test/ash/third.bmp")
    with pytest.raises(InputError, match="1 of the training images"):
        settled(splits)
    assert len(pd.read_csv(splits / "pairs.csv")) == 1
    found = settled(splits, DROP)
    assert [len(images) for images in found.parts.values()] == [13, 12, 11]


def test_many_pairs_are_in_the_table_and_the_first_few_in_the_message(splits):
    for path in (splits / "id/train/ash").glob("*.jpg"):
        shutil.copy(path, splits / "id/test/ash" / f"copy {path.name}")
    with pytest.raises(InputError, match=r"6 of the training .*; and 3 more; all pairs are in"):
        settled(splits)
    assert len(pd.read_csv(splits / "pairs.csv")) == 6


def test_copies_within_a_part_are_told_and_stay_or_go(splits):
    for copy in range(3):
        shutil.copy(splits / "id/train/ash/001.jpg", splits / "id/train/ash" / f"copy {copy}.jpg")
    found = settled(splits)
    assert len(found.parts["training"]) == 15
    (note,) = found.notes
    assert note.startswith("3 training images are copies of others (")
    assert "--drop-duplicates keeps one of each" in note
    assert len(pd.read_csv(splits / "pairs.csv")) == 3
    assert len(settled(splits, DROP).parts["training"]) == 12


@pytest.mark.parametrize("target", ["train", "test"])
def test_an_image_under_two_labels_is_refused_dropped_or_kept(splits, target):
    shutil.copy(splits / "id/train/ash/001.jpg", splits / "id" / target / "b [old]/other.jpg")
    for reading in (Reading(), DROP):
        with pytest.raises(InputError, match="1 images have several labels"):
            settled(splits, reading)
    (row,) = pd.read_csv(splits / "pairs.csv").to_dict("records")
    assert {row["class"], row["class of copy"]} == {"ash", "b [old]"}
    found = settled(splits, Reading(on_contradiction="drop"))
    assert sum(map(len, found.parts.values())) == 35
    assert found.notes == ["2 images left out, which have several labels"]
    kept = settled(splits, Reading(drop_duplicates=target == "test", on_contradiction="keep"))
    assert sum(map(len, kept.parts.values())) == 36 + (target == "train")
    with pytest.raises(InputError, match="is 'ask'; expected refuse, drop or keep"):
        check_settings(Reading(on_contradiction="ask"))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_ood_images_that_are_id_are_refused_by_name_and_number_or_dropped(splits, part):
    for name in ("001.jpg", "002.jpg"):
        shutil.copy(splits / "id" / part / "ash" / name, splits / "ood/x" / f"id {name}")
    with pytest.raises(InputError, match="2 of 8 images of the OOD set ood are also ID images"):
        settled(splits, ood=["ood"])
    assert len(pd.read_csv(splits / "pairs.csv")) == 2
    found = settled(splits, DROP, ood=["ood"])
    assert len(found.ood[0]) == 6
    assert found.notes == ["ood: 2 images left out, which are ID images"]


def test_what_was_drawn_here_is_never_refused(splits):
    """Copies by pixels that no digest of files has shown are left out of the drawn part."""
    source = splits / "id/train/ash/001.jpg"
    Image.open(source).save(splits / "id/test/ash/other.png")
    found = data.open_splits(str(splits / "id"))
    test, train = data.readable([found.test, found.train], False, 0, QUIET)
    parts = settle(
        {"test": test, "training": train}, Reading(), splits / "pairs.csv", drawn="test"
    ).parts
    assert [len(images) for images in parts.values()] == [12, 12]
    assert not np.isin(parts["test"].contents, parts["training"].contents).any()
