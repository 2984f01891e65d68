"""What calibrates is drawn fairly, has chosen nothing, and is no copy of what trains."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isomax.calibration import RejectionThreshold
from isomax_evaluation import data
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.data.splitting import (
    FEWEST_SELECT,
    assign,
    calibrating_steps,
    draw_test,
    hold_out,
    split_for_calibration,
    split_training,
    units_of,
)
from isomax_evaluation.output.errors import InputError

from ...image_folders import make_folder

SETS = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=8),  # how many images each class has
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.02, 0.05, 0.1, 0.3]),
)


def listed(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return [f"class {label}/{at:04}.png" for at, label in enumerate(labels)], labels


def images_of(counts, groups=None, contents=None):
    names, labels = listed(counts)
    classes = tuple(map(str, range(len(counts))))
    return Images(
        "set", None, labels, classes, np.arange(len(labels)), names=names,
        groups=None if groups is None else np.array(groups),
        contents=None if contents is None else np.array(contents),
    )  # fmt: skip


def parts_of(places):
    return places.selection, places.calibration, places.spare


def names_of(images):
    return {images.name_of(at) for at in range(len(images))}


@given(SETS)
@settings(max_examples=150)
def test_parts_are_stratified_and_calibration_is_served_first(drawn):
    counts, seed, alpha = drawn
    names, labels = listed(counts)
    places = assign(names, labels, alpha, seed=seed)
    assert sorted(np.concatenate(parts_of(places))) == list(range(len(names)))
    assert not len(places.spare)
    needed = RejectionThreshold(alpha).samples_needed
    assert places.established == (len(names) >= needed)
    if len(places.selection):
        assert len(places.selection) >= FEWEST_SELECT
        assert len(places.calibration) >= min(calibrating_steps(alpha))
    else:
        assert len(names) < min(calibrating_steps(alpha)) + FEWEST_SELECT
    for label in set(labels):
        due = (labels == label).sum() * len(places.calibration) / len(labels)
        assert abs((labels[places.calibration] == label).sum() - due) < 2


@given(SETS, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_parts_depend_on_names_not_on_the_order(drawn, random):
    counts, seed, alpha = drawn
    names, labels = listed(counts)
    groups = [name[-6:-5] for name in names]
    order = list(range(len(names)))
    random.shuffle(order)
    for units in (None, groups):
        places = assign(names, labels, alpha, units, seed)
        other = assign(
            [names[at] for at in order],
            labels[order],
            alpha,
            units and [groups[at] for at in order],
            seed,
        )
        for one, another in zip(parts_of(places), parts_of(other), strict=True):
            assert {names[at] for at in one} == {names[order[at]] for at in another}


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=80),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.05, 0.2]),
)
@settings(max_examples=100)
def test_units_straddle_no_parts_and_one_image_of_each_calibrates(sizes, seed, alpha):
    units = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    names = [f"{at}.png" for at in range(len(units))]
    labels = np.random.default_rng(seed).integers(0, 2, len(units))
    places = assign(names, labels, alpha, units, seed)
    assert sorted(np.concatenate(parts_of(places))) == list(range(len(names)))
    selection, calibration, spare = ([units[at] for at in part] for part in parts_of(places))
    assert not set(selection) & set(calibration)
    assert set(spare) <= set(calibration)
    if places.established:
        assert len(set(calibration)) == len(calibration)
    else:
        assert not selection
        assert not spare
        assert "guarantee not established" in places.notes("groups")[0]


def test_each_image_is_as_likely_as_any_other_to_calibrate():
    """Of rare classes too: what never calibrates is not exchangeable with what does."""
    names, labels = listed([100, 7, 3, 50])
    drawn = np.zeros(len(names))
    for seed in range(2000):
        drawn[assign(names, labels, 0.1, seed=seed).calibration] += 1
    expected = 80 / 160
    assert np.abs(drawn / 2000 - expected).max() < 5 * (expected * (1 - expected) / 2000) ** 0.5


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30),
)
def test_units_are_what_groups_and_contents_tie_together(ties):
    groups, contents = zip(*ties, strict=True)
    units = units_of(images_of([len(ties)], groups, contents))
    for at in range(len(ties)):
        for other in range(at):
            if groups[at] == groups[other] or contents[at] == contents[other]:
                assert units[at] == units[other]
    # no more than what a chain of ties leads to
    reached = {0}
    while more := {
        at for at in range(len(ties)) for known in reached
        if groups[at] == groups[known] or contents[at] == contents[known]
    } - reached:  # fmt: skip
        reached |= more
    assert {at for at in range(len(ties)) if units[at] == units[0]} == reached


def test_a_fresh_unit_is_falsely_rejected_no_more_often_than_promised():
    """Images of one patient score alike, and some patients have twelve times as many as others."""
    alpha, count, rejected = 0.1, 30, []
    generator = np.random.default_rng(0)
    for seed in range(400):
        sizes = generator.integers(1, 13, count + 1)
        owner = np.repeat(np.arange(count + 1), sizes)
        scores = (sizes + generator.normal(size=count + 1))[owner]
        scores += 0.1 * generator.normal(size=len(owner))
        known = np.flatnonzero(owner < count)
        names, labels = [str(at) for at in known], np.zeros(len(known), int)
        units = [str(patient) for patient in owner[known]]
        places = assign(names, labels, alpha, units, seed)
        held = np.sort(scores[known[places.calibration]])
        threshold = held[int(np.ceil((len(held) + 1) * (1 - alpha))) - 1]
        rejected.append(scores[generator.choice(np.flatnonzero(owner == count))] > threshold)
    assert np.mean(rejected) <= alpha + 3 * (alpha * (1 - alpha) / 400) ** 0.5


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("share_copied", [0.5, 1.0])
def test_copies_of_an_image_are_all_on_one_side(copies, share_copied):
    different = 500
    contents = np.concatenate(
        [np.arange(different), *[np.arange(int(share_copied * different))] * (copies - 1)]
    )
    images = images_of([len(contents)], contents=contents)
    images = replace(images, labels=contents % 3, class_names=("a", "b", "c"))
    train, test = draw_test(images)
    split = split_training(train, None, 0.05)
    sets = [split.training, split.selection, split.calibration, test]
    for at, one in enumerate(sets):
        for other in sets[:at]:
            assert not np.isin(one.contents, other.contents).any()
    assert split.guarantee == "established"
    assert max(Counter(split.calibration.contents.tolist()).values()) == 1
    assert len(test) == pytest.approx(len(contents) / 5, rel=0.2)


@pytest.mark.parametrize("share_copied", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("different", [150, 640])
def test_copies_do_not_make_a_model_that_knows_its_images_reject_fresh_ones(
    different, share_copied
):
    """A model that has learnt images by heart scores those lower, and their copies as well."""
    alpha, generator, rejected = 0.05, np.random.default_rng(0), []
    contents = np.concatenate(
        [np.arange(different), *[np.arange(int(share_copied * different))] * 3]
    )
    images = replace(
        images_of([len(contents)], contents=contents), labels=contents % 2, class_names=("a", "b")
    )
    for seed in range(200):
        split = split_training(images, None, alpha, seed=seed)
        assert split.guarantee == "established"
        scores = generator.normal(size=different)
        scores[np.unique(split.training.contents)] -= 3
        held = np.sort(scores[split.calibration.contents])
        threshold = held[int(np.ceil(round((len(held) + 1) * (1 - alpha), 9))) - 1]
        rejected.append((generator.normal(size=1000) > threshold).mean())
    assert np.mean(rejected) <= alpha + 3 * np.std(rejected) / 200**0.5


@pytest.mark.parametrize("size", [1, 5])
def test_images_to_test_on_are_drawn_by_class_and_group(size):
    labels = listed([400, 100, 20])[1]
    groups = [f"{label} {at // size}" for at, label in enumerate(labels)] if size > 1 else None
    images = images_of([400, 100, 20], groups)
    rest, test = draw_test(images)
    assert np.bincount(test.labels, minlength=3) == pytest.approx([80, 20, 4], abs=size)
    assert sorted([*rest.indices, *test.indices]) == list(range(520))
    if size > 1:
        assert not set(rest.groups) & set(test.groups)


def test_adding_images_moves_few():
    before, more = (draw_test(images_of([200, count]))[1] for count in (200, 201))
    held, again = (set(map(images.key_of, range(len(images)))) for images in (before, more))
    assert len(held & again) >= 0.9 * len(held)


# -- How many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "calibrating", "selecting", "held_out"),
    [
        (3000, 150, 150, 300),  # a tenth is enough
        (1200, 99, 21, 120),
        (640, 59, 20, 79),  # more than a tenth, so that the threshold is not the largest score
        (400, 39, 20, 59),
        (200, 39, 0, 39),  # too few to select by as well
        (100, 20, 0, 20),  # the largest after all
    ],
)
def test_shares_follow_from_alpha_and_from_what_there_is(count, calibrating, selecting, held_out):
    split = split_training(images_of([count // 4] * 4), None, 0.05)
    found = (len(split.calibration), 0 if split.selection is None else len(split.selection))
    assert found == pytest.approx((calibrating, selecting), abs=4)
    assert found[0] >= min(calibrating, 39) or calibrating < 39
    assert split.held_out == pytest.approx(held_out, abs=4)
    assert len(split.training) == count - split.held_out
    assert any("rather than 10%" in note for note in split.notes) == (held_out > count / 10)


def test_a_share_that_is_given_is_kept():
    split = split_training(images_of([200, 200]), None, 0.05, share=0.05)
    assert split.held_out == 20
    assert len(split.calibration) == 20


def test_what_calibrates_a_detector_selects_nothing():
    split = split_for_calibration(images_of([500, 500]), None, None, 0.05)
    assert split.selection is None
    assert split.guarantee == "unknown"
    assert len(split.calibration) == 100
    assert len(split.training) == 900


def test_of_val_and_test_val_is_held_out_and_nothing_of_train(tmp_path):
    for seed, (split, count) in enumerate((("train", 5), ("valid", 45), ("Test", 4))):
        make_folder(tmp_path / split, ("a", "b"), count, seed=seed)
    splits = data.open_splits(str(tmp_path))
    assert len(splits.test) == 8
    divided = split_training(splits.train, splits.held_out, 0.05)
    assert len(divided.training) == 10
    held_out = names_of(divided.calibration) | names_of(divided.selection)
    assert held_out == names_of(splits.held_out)
    assert all("/valid/" in name for name in held_out)


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
        split_training(splits.train, splits.held_out, 0.05)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match=r"2 names \(1 of them different\)"):
        assign(["a", "a"], np.array([0, 0]), 0.05)
    with pytest.raises(ValueError, match="1 labels"):
        assign(["a", "b"], np.array([0]), 0.05)
    for images in (images_of([5, 1]), images_of([5, 2], contents=[0, 1, 2, 3, 4, 5, 5])):
        with pytest.raises(InputError, match="class '1' of set has one image only"):
            hold_out(images, 0.2)
    with pytest.raises(InputError, match="one image or one group only"):
        draw_test(images_of([1, 1]))


# -- On disk -------------------------------------------------------------------------------------


def test_a_flat_folder_with_copies_is_drawn_once(tmp_path):
    """Each copy on the side of its original, whatever the class folder it lies in is called."""
    root = make_folder(tmp_path / "photos", ("a", "b"), 60)
    for path in sorted(root.rglob("*.jpg")):
        for copy in range(3):
            shutil.copy(path, path.with_name(f"{copy} of {path.name}"))
    splits = data.open_splits(str(root))
    assert len(splits.train) + len(splits.test) == 480
    assert not np.isin(splits.test.contents, splits.train.contents).any()
    split = split_training(splits.train, None, 0.05)
    assert not np.isin(split.calibration.contents, split.training.contents).any()
    table = data.table_of_splits([("train", split.training), ("none", None)])
    assert set(table["path"]) == names_of(split.training)
    assert set(table["class"]) == {"a", "b"}


def patients(root, count, images=6):
    """Patients of several images each, of one class each."""
    for number in range(count):
        made = make_folder(root / f"{number}", ("a", "b")[number % 2 :][:1], images, seed=number)
        for path in made.rglob("*.jpg"):
            place = root / "set" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            path.rename(place / f"p{number:03}_{path.name}")
    return data.open_splits(str(root / "set"), reading=Reading(group_by="4"))


def test_no_split_parts_a_group_and_one_image_of_each_calibrates(tmp_path):
    splits = patients(tmp_path, 60)
    divided = split_training(splits.train, None, 0.2, 0.6)
    sets = [divided.training, divided.selection, divided.calibration, splits.test]
    groups = [set(images.groups) for images in sets if images is not None]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 60
    assert len(set(divided.calibration.groups)) == len(divided.calibration) >= 4
    assert divided.guarantee == "established"
    assert "one image of each of" in divided.notes[-1]


def test_with_few_groups_the_guarantee_is_not_established(tmp_path):
    splits = patients(tmp_path, 20)
    divided = split_training(splits.train, None, 0.05, 0.5)
    assert divided.guarantee == "not established"
    assert len(divided.calibration) == 6 * 8
    assert "guarantee not established: 8 groups calibrate" in divided.notes[-1]
