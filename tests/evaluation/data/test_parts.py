"""What calibrates is drawn fairly, and has chosen nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isomax_evaluation.data.parts import FEWEST_SELECT, hold_out, split_parts

SETS = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=8),  # how many images each class has
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 0.2, 0.5, 1.0]),
    st.integers(1, 40),
)


def images_of(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return [f"class {label}/{at:04}.png" for at, label in enumerate(labels)], labels


def split_or_reason(*given, **named):
    try:
        return split_parts(*given, **named)
    except ValueError as error:
        return str(error)


def parts_of(parts):
    return parts.training, parts.selection, parts.calibration, parts.spare


@given(SETS)
@settings(deadline=None, max_examples=150)
def test_parts_are_stratified_and_calibration_is_served_first(drawn):
    counts, seed, share, needed = drawn
    names, labels = images_of(counts)
    parts = split_or_reason(names, labels, needed, share, seed=seed)
    if isinstance(parts, str):
        assert "hold out more" in parts or "none can be held out" in parts
        return
    together = np.concatenate(parts_of(parts))
    assert sorted(together) == list(range(len(names)))
    assert parts.established
    assert not len(parts.spare)
    held = len(names) - len(parts.training)
    assert len(parts.calibration) >= needed
    assert len(parts.selection) in (0, held - max(-(-held // 2), needed))
    if len(parts.selection):
        assert len(parts.selection) >= FEWEST_SELECT
        assert not parts.notes
    else:
        assert "nothing is selected, and the last epoch is kept" in parts.notes[0]
    if share == 1:
        assert not len(parts.training)
    else:
        assert set(labels[parts.training]) == set(labels)
        held_labels = np.setdiff1d(np.arange(len(names)), parts.training)
        due = held / (len(names) - len(set(labels))) if held else 0
        for label, count in enumerate(counts):
            assert (labels[held_labels] == label).sum() <= due * count + 1
    for label in set(labels):
        among = np.concatenate([parts.selection, parts.calibration])
        due = (labels[among] == label).sum() * len(parts.calibration) / len(among)
        assert abs((labels[parts.calibration] == label).sum() - due) < 2


@given(SETS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_parts_depend_on_names_not_on_the_order(drawn, random):
    counts, seed, share, needed = drawn
    names, labels = images_of(counts)
    groups = [name[-6:-5] for name in names]
    order = list(range(len(names)))
    random.shuffle(order)
    for grouping in (None, groups):
        parts = split_or_reason(names, labels, needed, share, grouping, seed)
        other = split_or_reason(
            [names[at] for at in order],
            labels[order],
            needed,
            share,
            grouping and [groups[at] for at in order],
            seed,
        )
        if isinstance(parts, str):
            assert parts == other
            continue
        for one, another in zip(parts_of(parts), parts_of(other), strict=True):
            assert {names[at] for at in one} == {names[order[at]] for at in another}


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=80),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.integers(1, 30),
)
@settings(deadline=None, max_examples=100)
def test_groups_straddle_no_parts_and_one_image_of_each_calibrates(sizes, seed, share, needed):
    groups = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    names = [f"{at}.png" for at in range(len(groups))]
    labels = np.random.default_rng(seed).integers(0, 2, len(groups))
    parts = split_or_reason(names, labels, needed, share, groups, seed)
    if isinstance(parts, str):
        assert "hold out more" in parts or "none can be held out" in parts
        return
    assert sorted(np.concatenate(parts_of(parts))) == list(range(len(names)))
    training, selection, calibration, spare = (
        [groups[at] for at in part] for part in parts_of(parts)
    )
    assert not set(training) & {*selection, *calibration}
    assert not set(selection) & set(calibration)
    assert set(spare) <= set(calibration)
    if parts.established:
        assert len(set(calibration)) == len(calibration) >= needed
        assert f"one image of each of {len(calibration)} groups" in parts.notes[-1]
    else:
        assert not selection
        assert not spare
        assert len(calibration) >= needed > len(set(calibration))
        assert "guarantee not established" in parts.notes[-1]


def test_each_image_is_as_likely_as_any_other_to_calibrate():
    """Of rare classes too: what never calibrates is not exchangeable with what does."""
    names, labels = images_of([100, 7, 3, 50])
    drawn = np.zeros(len(names))
    for seed in range(2000):
        drawn[split_parts(names, labels, 10, seed=seed).calibration] += 1
    expected = 80 / 160
    assert np.abs(drawn / 2000 - expected).max() < 5 * (expected * (1 - expected) / 2000) ** 0.5


def test_a_fresh_group_is_falsely_rejected_no_more_often_than_promised():
    """Images of one patient score alike, and some patients have twelve times as many as others."""
    alpha, needed, count, rejected = 0.1, 9, 30, []
    generator = np.random.default_rng(0)
    for seed in range(400):
        sizes = generator.integers(1, 13, count + 1)
        owner = np.repeat(np.arange(count + 1), sizes)
        scores = (sizes + generator.normal(size=count + 1))[owner]
        scores += 0.1 * generator.normal(size=len(owner))
        known = np.flatnonzero(owner < count)
        groups = [str(patient) for patient in owner[known]]
        names, labels = [str(at) for at in known], np.zeros(len(known), int)
        parts = split_parts(names, labels, needed, groups=groups, seed=seed)
        held = np.sort(scores[known[parts.calibration]])
        threshold = held[int(np.ceil((len(held) + 1) * (1 - alpha))) - 1]
        rejected.append(scores[generator.choice(np.flatnonzero(owner == count))] > threshold)
    assert np.mean(rejected) <= alpha + 3 * (alpha * (1 - alpha) / 400) ** 0.5


@pytest.mark.parametrize("size", [1, 5])
def test_images_to_test_on_are_held_out_by_class_and_group(size):
    names, labels = images_of([400, 100, 20])
    groups = [f"{label} {at // size}" for at, label in enumerate(labels)]
    held = hold_out(names, labels, 0.2, groups if size > 1 else None)
    assert np.bincount(labels[held]) == pytest.approx([80, 20, 4], abs=size)
    kept = np.setdiff1d(np.arange(len(names)), held)
    if size > 1:
        assert not {groups[at] for at in held} & {groups[at] for at in kept}
    other = hold_out(names, labels, 0.2, groups if size > 1 else None, seed=1)
    assert set(other) != set(held)
    assert len(hold_out(names, labels, 1.0)) == len(names)


def test_adding_images_moves_few():
    names, labels = images_of([200, 200])
    before = split_parts(names, labels, 19, 0.2)
    more = [*names, "class 0/new.png"]
    after = split_parts(more, np.append(labels, 0), 19, 0.2)
    held = {names[at] for at in range(400)} - {names[at] for at in before.training}
    again = set(more) - {more[at] for at in after.training}
    assert len(held & again) >= 0.9 * len(held)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "a"], [0, 0], 1), r"2 names \(1 of them different\)"),
        ((["a", "b"], [0], 1), "1 labels"),
        ((["a", "b"], [0, 0], 1, 1.0, ["g"]), "1 groups"),
        ((["a", "b"], [0, 0], 1, 0), "share to hold out is 0"),
        ((["a", "b"], [0, 0], 1, 1.5), "share to hold out is 1.5"),
        ((["a", "b"], [0, 1], 1, 0.5), "one of the images only"),
        ((["a", "b"], [0, 0], 1, 0.5, ["g", "g"]), "one of the groups only"),
        ((["a", "b", "c"], [0, 0, 0], 3, 0.5), "2 images are held out and the threshold takes 3"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    names, labels, needed, *rest = arguments
    with pytest.raises(ValueError, match=message):
        split_parts(names, np.array(labels), needed, *rest)
