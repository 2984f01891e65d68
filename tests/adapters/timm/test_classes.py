"""Names of classes are exact; only ImageNet's are found as folders are called."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isomax_adapters.timm.classes import checked_names, match_classes

IMAGENET = SimpleNamespace(num_classes=1000, pretrained_cfg={"architecture": "resnet50"})


def named(names):
    return SimpleNamespace(num_classes=len(names), pretrained_cfg={"label_names": list(names)})


@given(st.data())
def test_any_names_that_differ_are_told_apart(data):
    alike = st.text("Aa_ ß1", min_size=1, max_size=4) | st.sampled_from(["ss", "ß", "SS"])
    names = data.draw(st.lists(alike, min_size=1, max_size=8, unique=True))
    chosen = data.draw(st.permutations(names))
    assert match_classes(named(names), len(names), "m", chosen) == [names.index(c) for c in chosen]


def test_what_a_name_may_have_meant_is_said_and_not_taken():
    with pytest.raises(ValueError, match=r"does not know 1 of the 2 .*did you mean Cat 1 for cat_"):
        match_classes(named(["Cat 1", "dog"]), 2, "m", ["cat_1", "dog"])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("n01440764", 0),
        ("n01440764_tench", 0),
        ("n01440764-tench", 0),
        ("tench", 0),
        ("tench, Tinca tinca", 0),
        ("Tinca_tinca", 0),
        ("maillot", 638),
        ("maillot, tank suit", 639),
        ("tank_suit", 639),
        ("Goldfish", 1),
    ],
)
def test_imagenets_classes_are_found_as_folders_are_called(name, place):
    assert match_classes(IMAGENET, 1000, "m", [name]) == [place]


def test_a_thousand_classes_that_are_not_imagenets_have_no_names():
    names = [f"class_{at}" for at in range(1000)]
    assert match_classes(IMAGENET, 1000, "m", names) is None
    assert match_classes(IMAGENET, 1000, "m", names[::-1], names) == list(range(1000))[::-1]
    with pytest.raises(ValueError, match="does not know 2 of the 2"):
        match_classes(IMAGENET, 1000, "m", names[:2])


def test_a_model_without_names_takes_those_given_and_a_model_with_names_its_own():
    nameless = SimpleNamespace(num_classes=2, pretrained_cfg={})
    assert match_classes(nameless, 2, "m", ["a", "b"]) is None
    assert match_classes(nameless, 2, "m", ["a", "b"], ["b", "a"]) == [1, 0]
    assert match_classes(named("ab"), 2, "m", ["a", "b"], ["b", "a"]) == [0, 1]
    with pytest.raises(ValueError, match=r"2 classes without names, the ID data 3 .*--class-names"):
        match_classes(nameless, 2, "m", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ab", "class_names is the text 'ab'; expected a list of names"),
        (["a"], "1 class names for 2 classes"),
        (["a", "a"], "a are names of more than one class"),
    ],
)
def test_names_that_cannot_be_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        checked_names(names, 2)
