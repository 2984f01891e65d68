"""Labels of data sets of PyTorch's: what their items return."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from isomax_evaluation.comparison.sets import open_sets
from isomax_evaluation.data.datasets import open_images
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.data.torch_datasets import labels_of, open_torch
from isomax_evaluation.output.errors import InputError

PICTURE = Image.new("RGB", (8, 8))


class Listed(Dataset):
    """Items with some labels; what else it says of them is given."""

    def __init__(self, given, /, **attributes):
        self.given, self.read = given, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        self.read += 1
        return PICTURE, self.given[index]


class Remapped(Dataset):
    """A wrapper that hands through what it wraps, and numbers the classes otherwise."""

    def __init__(self, inner, change):
        self.inner, self.change = inner, change

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, label = self.inner[index]
        return image, self.change(label)

    def __getattr__(self, name):
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def labels(dataset):
    return labels_of(dataset, "set")[0].tolist()


LISTS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@given(LISTS, st.sampled_from(["targets", "labels", "_labels"]), st.integers(0, 3))
def test_what_items_return_counts(given_labels, attribute, shift):
    inner = Listed(given_labels, **{attribute: given_labels})
    wrapped = Remapped(inner, lambda label: (label + shift) % 5)
    expected = [(label + shift) % 5 for label in given_labels]
    assert labels(wrapped) == expected
    chosen = list(range(0, len(given_labels), 2))
    assert labels(Subset(wrapped, chosen)) == expected[::2]
    assert labels(ConcatDataset([wrapped, inner])) == expected + given_labels


def test_images_are_not_decoded_where_the_list_is_right():
    dataset = Listed([0, 1] * 500, targets=[0, 1] * 500)
    assert labels(Subset(dataset, range(0, 1000, 5))) == [0, 1] * 100
    assert dataset.read <= 32


def test_a_target_transform_counts_where_it_changes_few_labels():
    given_labels = [0] * 1000
    changed = given_labels.copy()
    changed[501] = 1
    dataset = Listed(changed, targets=given_labels, target_transform=lambda label: label)
    assert labels(dataset) == changed


@pytest.mark.parametrize(
    "kind", [int, np.int64, np.float32, torch.tensor, lambda label: torch.tensor([label]),
             lambda label: np.eye(3)[label], lambda label: torch.eye(3)[label].long(),
             lambda label: [float(label == at) for at in range(3)]],
)  # fmt: skip
def test_numbers_and_one_hot_vectors(kind):
    wanted = [0, 2, 1, 2]
    dataset = Listed([kind(label) for label in wanted])
    found, names = labels_of(dataset, "set")
    assert found.tolist() == wanted
    assert names == ("0", "1", "2")
    assert open_torch(DataLoader(dataset.given and [(torch.zeros(3, 8, 8), kind(at))
                                                    for at in wanted], batch_size=2, drop_last=True,
                                 collate_fn=lambda rows: tuple(zip(*rows, strict=True))),
                      "set").labels.tolist() == wanted  # fmt: skip


def test_names_are_numbered_in_natural_order_or_as_the_data_set_lists_them():
    wnids = ["n10", "n2", "n10", "n1"]
    found, names = labels_of(Listed(wnids, targets=wnids), "set")
    assert names == ("n1", "n2", "n10")
    assert [names[at] for at in found] == wnids
    found, names = labels_of(Listed(wnids, classes=["n10", "n2", "n1", "n0"]), "set")
    assert names == ("n10", "n2", "n1", "n0")
    assert [names[at] for at in found] == wnids


def test_several_words_are_one_name():
    dataset = Listed([0, 1], classes=[("tench", "Tinca tinca"), ("goldfish",)])
    assert labels_of(dataset, "set")[1] == ("tench, Tinca tinca", "goldfish")


def test_test_images_have_the_numbers_of_the_training_images():
    train, test = Listed(["cat", "ant", "bee"]), Listed(["cat", "bee"])
    sets = open_sets((train, test), [("far", Listed([None, {}]))], None, None, Reading())
    assert sets.train.class_names == sets.test.class_names == ("ant", "bee", "cat")
    assert sets.test.labels.tolist() == [2, 1]
    assert sets.unknown[0].labels.tolist() == [-1, -1]
    with pytest.raises(InputError, match="id has yak, not among the known classes: ant; bee; cat"):
        open_sets((train, Listed(["yak"])), [], None, None, Reading())


@pytest.mark.parametrize(
    ("given_labels", "message"),
    [
        ([0, None], r"the label of image 1 is None \(NoneType\); expected a number, the name of"),
        ([0, 0.5], r"the label of image 1 is 0.5 \(float\)"),
        ([[0.3, 0.7]], r"the label of image 0 is \[0.3, 0.7\] \(list\)"),
        ([{"id": 3}], r"the label of image 0 is {'id': 3} \(dict\)"),
        ([np.zeros((4, 4))], r"the label of image 0 is array"),
        ([0, "cat"], "labels that are names, such as 'cat', and labels that are numbers, such as"),
    ],
)
def test_what_is_no_label_is_one_line(given_labels, message):
    with pytest.raises(InputError, match=message) as error:
        labels_of(Listed(given_labels), "set")
    assert "\n" not in str(error.value)


def test_more_labels_than_names_and_items_without_labels_are_one_line():
    with pytest.raises(InputError, match="has a label 2, and names of 2 classes"):
        labels_of(Listed([0, 2], classes=["a", "b"]), "set")
    with pytest.raises(InputError, match=r"gives dict for image 0; expected \(image, label\)"):
        labels_of([{"image": PICTURE, "label": 1}], "set")


@pytest.mark.parametrize("kind", ["numbers", "numbers without names", "texts"])
def test_hugging_face_data_sets_as_timm_reads_them(kind, monkeypatch):
    texts = ["cat", "ant", "cat", "bee"]
    names = ["cat", "ant", "bee"]
    column = texts if kind == "texts" else [names.index(text) for text in texts]

    class Columns(dict):
        features: ClassVar = {"label": SimpleNamespace(names=names)}

    class Reader:
        label_key, dataset = "label", Columns(label=column)

        def __len__(self):
            return 4

    if kind != "numbers":
        Columns.features = {"label": SimpleNamespace(dtype="string")}
    made = Listed(column, reader=Reader())
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: made)
    found = open_images("hfds/someone/animals", "train")
    expected = list(map(str, column)) if kind == "numbers without names" else texts
    assert [found.class_names[at] for at in found.labels] == expected
