"""Images of a model's classes have its labels, whatever order their folder has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isomax_evaluation import data
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError

CLASSES = ("1", "2", "10", "11", "A", "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for name in CLASSES:
        place = root / name / "inside"  # classes are the first folders
        place.mkdir(parents=True)
        Image.new("L", (4, 4)).save(place / "x.png")
    return root


@pytest.mark.parametrize("order", [CLASSES, sorted(CLASSES), CLASSES[::-1], (*CLASSES, "more")])
@pytest.mark.parametrize("table", [False, True])
def test_labels_are_by_name(order, table, folder):
    given_as = folder
    if table:
        given_as = folder / "labels.csv"
        rows = [f"{name}/inside/x.png,{name}" for name in CLASSES]
        given_as.write_text("\n".join(["path,label", *rows]))
    images = data.open_of_classes(str(given_as), order)
    assert images.class_names == tuple(order)
    named = [images.class_of(at) for at in range(len(images))]
    assert named == [images.name_of(at).split("/")[-3] for at in range(len(images))]
    assert len(images) == len(CLASSES)


def test_other_classes_are_named(folder):
    with pytest.raises(InputError, match="has 11; A; a, not among the known classes: 1; 2; 10"):
        data.open_of_classes(str(folder), ("1", "2", "10"))


def test_folders_of_test_images_have_the_order_of_folders_of_training_images(folder):
    assert data.open_images(str(folder / "10")).class_names == ("inside",)
    for name in CLASSES:
        (folder / name / "x.png").write_bytes((folder / name / "inside/x.png").read_bytes())
    names = [one for one in data.open_images(str(folder)).class_names if one != "inside"]
    assert names == ["1", "2", "10", "11", "A", "a"]


@given(st.permutations(CLASSES), st.permutations(CLASSES), st.lists(st.integers(-1, 5)))
def test_a_change_of_order_changes_no_class(before, after, labels):
    places = np.arange(len(labels))
    images = Images("set", [], np.array(labels, dtype=int), tuple(before), places)
    changed = data.of_classes(images, after)
    assert [changed.class_of(at) for at in places] == [images.class_of(at) for at in places]
