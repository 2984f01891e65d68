"""Who may see which image: training, selection, calibration, test; drawn, recorded, read back.

What stays together is a *unit*: images of one group (patient, camera, day), and images with the
same content, which are one image however often it is there. One random image of each unit
calibrates, so that what is promised holds for an image of a fresh unit.
"""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from isomax.calibration import RejectionThreshold
from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import as_path
from isomax_evaluation.output.tables import as_they_are, read_table

TEST_SHARE = 0.2  # of a data set that is not split
HELD_OUT = 0.1  # of the training images, where nothing else says how many
MOST_HELD_OUT = 0.15  # of the training images, for a threshold that is not the largest score
MOST_OF_FEW = 0.2  # the same, where that takes it
FEWEST_SELECT = 20  # of fewer images, each is more than 5% of the accuracy
BEYOND = (5, 3, 2)  # which of the largest scores the threshold is to be, the best first

_OF_TRAINING = ("train", "validation", "calibration")


@dataclass(frozen=True)
class Split:
    """The ID images of a model: each part has seen nothing of the others."""

    training: Images
    selection: Images | None  #: chooses epochs and hyperparameters; none if there are too few
    calibration: Images  #: sets temperature and threshold, and nothing else
    guarantee: str  #: as :class:`isomax.calibration.Calibration` has it
    notes: tuple[str, ...] = ()  #: what whoever relies on it should read

    @property
    def held_out(self) -> int:
        """How many images train nothing."""
        selecting = 0 if self.selection is None else len(self.selection)
        return selecting + len(self.calibration)

    def decoded(self, decoding: Decoding) -> "Split":
        """The same images, decoded in another way."""
        return replace(
            self,
            training=self.training.decoded(decoding),
            selection=None if self.selection is None else self.selection.decoded(decoding),
            calibration=self.calibration.decoded(decoding),
        )


def draw_test(images: Images, share: float = TEST_SHARE) -> tuple[Images, Images]:
    """Training and test images of a set that is not split, by class and unit.

    Which they are depends on names, labels, groups and contents, not on the order.

    :raises InputError: if nothing can be held out
    """
    units = units_of(images)
    chosen = np.isin(units, _held(_classes(units, images.labels), share, "0 test"))
    return images.take(np.flatnonzero(~chosen)), images.take(np.flatnonzero(chosen))


def hold_out(images: Images, share: float, seed: int = 0) -> tuple[Images, Images]:
    """Two parts with the same classes; the second holds ``share`` of the units of each class, at
    least one.

    :raises InputError: if a class has only one image
    """
    units = units_of(images)
    classes = _classes(units, images.labels)
    if images.groups is None:
        held = _held_by_class(classes, share, seed, images)
    else:
        held = _held(classes, share, f"{seed} hold out")
    chosen = np.isin(units, held)
    return images.take(np.flatnonzero(~chosen)), images.take(np.flatnonzero(chosen))


def split_training(
    train: Images,
    held_out: Images | None,
    alpha: float,
    share: float | None = None,
    seed: int = 0,
    usual: float = HELD_OUT,
) -> Split:
    r"""Hold images out of training, for selection and calibration.

    Calibration is served first: with half of what is held out, and with so many that the threshold
    is not the largest of their scores: the fifth, third or second largest takes
    :math:`\lceil j / \alpha \rceil - 1` images, 99, 59 or 39 for 5%. Where a share of ``usual`` is
    too small for that, more is held out, up to 15% of the training images (20% for the least of
    these), which a note says.

    :param train: labelled images
    :param held_out: a validation set of the user's own, in the place of a share of ``train``
    :param alpha: false-alarm rate of the threshold
    :param share: of the training images (units) to hold out, exactly; if not given, it follows from
        ``alpha`` and from what there is
    :param seed: of the draw
    :param usual: the share where nothing asks for more
    :raises InputError: if there are too few
    """
    more = "put more into its validation set"
    notes: tuple[str, ...] = ()
    if held_out is None:
        more = "give more training images, hold out more of them (isomax train --val-share)"
        train, held_out, notes = _hold_out(train, alpha, share, seed, usual)
    least = RejectionThreshold(alpha).samples_needed
    if len(held_out) < least:
        raise InputError(
            f"the threshold takes {least} validation images, there are {len(held_out)}; {more}, or "
            "choose a larger alpha"
        )
    places = assign(keys_of(held_out), held_out.labels, alpha, units_of(held_out), seed)
    grouped = "groups" if held_out.groups is not None else "different images"
    return Split(
        train,
        held_out.take(places.selection) if len(places.selection) else None,
        held_out.take(places.calibration),
        "established" if places.established else "not established",
        (*notes, *places.notes(grouped)),
    )


def split_for_calibration(
    train: Images,
    validation: Images | None,
    recorded: Path | None,
    alpha: float,
    given: Images | None = None,
) -> Split:
    """Images to fit a detector on, and images that neither it nor the model has seen.

    These are, in this order: those that are given; those that ``isomax train`` has held out to
    calibrate on; the validation set that lies beside a test set. Where there are none of these, a
    share of the training images is kept from the detector, and nobody can know whether the model
    was trained on them.

    :param train: ID images to fit on
    :param validation: the data set's own
    :param recorded: the table of :func:`table_of_splits` beside the model, if there can be one
    :param alpha: false-alarm rate of the threshold
    :param given: images of the same classes that the model has not seen
    :raises InputError: if there are too few
    """
    parts = [] if recorded is None else recorded_parts(recorded, train)
    places = {what: [at for at, part in enumerate(parts) if part == what] for what in _OF_TRAINING}
    if given is not None:
        found = Split(train, None, given, "established")
    elif places["calibration"] and places["train"]:
        held = train.take(places["calibration"])
        found = Split(train.take(places["train"]), None, held, "established")
    elif validation is not None:
        found = Split(train, None, validation, "established")
    else:
        train, held, notes = _hold_out(train, alpha, None, 0, HELD_OUT, selecting=0)
        chosen = assign(keys_of(held), held.labels, alpha, units_of(held), 0, selecting=False)
        held = held.take(chosen.calibration)
        note = (
            f"{len(held)} training images were kept from the detector to calibrate on; if the "
            "model was trained on them, more than alpha of fresh images will be rejected: the "
            "guarantee is unknown. Give images that it has not seen, in val beside test, or with "
            "--calibration FOLDER"
        )
        found = Split(train, None, held, "unknown", (*notes, note))
    least = RejectionThreshold(alpha).samples_needed
    if len(found.calibration) < least:
        raise InputError(
            f"the threshold takes {least} images that the model has not seen, and there are "
            f"{len(found.calibration)}; give more, or choose a larger alpha"
        )
    return found


# -- Units ---------------------------------------------------------------------------------------


def units_of(images: Images) -> list[str]:
    """What stays together: a key for each image, that of the first of its unit.

    Groups that share a content are one unit.
    """
    keys = keys_of(images)
    unit = {key: key for key in keys}

    def first(key: str) -> str:
        while unit[key] != key:
            unit[key] = key = unit[unit[key]]
        return key

    for ties in (images.groups, images.contents):
        met: dict[object, str] = {}
        for key, tie in zip(keys, () if ties is None else ties.tolist(), strict=False):
            one, other = sorted((first(key), first(met.setdefault(tie, key))))
            unit[other] = one
    return [first(key) for key in keys]


def keys_of(images: Images) -> list[str]:
    """What tells each image from the others, however the path of the data set is written."""
    return [images.key_of(position) for position in range(len(images))]


def _classes(units: Sequence[str], labels: np.ndarray) -> dict[str, int]:
    """The class of each unit: the most frequent of its images."""
    members: dict[str, list[int]] = defaultdict(list)
    for unit, label in zip(units, np.asarray(labels).tolist(), strict=True):
        members[unit].append(label)
    return {unit: int(np.bincount(mine).argmax()) for unit, mine in members.items()}


# -- How many ------------------------------------------------------------------------------------


def calibrating_steps(alpha: float) -> list[int]:
    r"""How many images make the threshold the fifth, third and second largest score,
    :math:`\lceil j / \alpha \rceil - 1`.

    >>> calibrating_steps(0.05)
    [99, 59, 39]
    """
    return [math.ceil(round(place / alpha, 9)) - 1 for place in BEYOND]


def _wanted(alpha: float, units: int, usual: float, selecting: int) -> int:
    """How many units are to be held out of so many."""
    steps = calibrating_steps(alpha)
    for step in steps:
        if step + selecting <= max(usual, MOST_HELD_OUT) * units:
            return max(math.ceil(usual * units), step + selecting)
    for enough in (steps[-1] + selecting, steps[-1], RejectionThreshold(alpha).samples_needed):
        if enough <= MOST_OF_FEW * units:
            return max(math.ceil(usual * units), enough)
    return math.ceil(usual * units)


def _hold_out(
    train: Images,
    alpha: float,
    share: float | None,
    seed: int,
    usual: float,
    selecting: int = FEWEST_SELECT,
) -> tuple[Images, Images, tuple[str, ...]]:
    """Training images and held-out ones; and what that costs."""
    if share is not None:
        return *hold_out(train, share, seed), ()
    classes = _classes(units_of(train), train.labels)
    count = _wanted(alpha, len(classes), usual, selecting)
    if count <= math.ceil(usual * len(classes)):
        return *hold_out(train, usual, seed), ()
    share = count / len(classes)
    while share < 1 and _count(classes, share) < count:  # of each class, a whole number
        share *= 1.01
    train, held = hold_out(train, min(share, 0.99), seed)
    note = (
        f"{len(held):,} of {len(train) + len(held):,} training images are held out, rather than "
        f"{usual:.0%}, so that the threshold is not the largest of the calibration scores"
    )
    return train, held, (note,)


# -- Draws ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Places:
    """Positions among held-out images, ascending; each image is in one part."""

    selection: np.ndarray  #: may be empty
    calibration: np.ndarray
    spare: np.ndarray  #: of the units that calibrate, the images beside the one that does
    units: int  #: how many are held out
    established: bool  #: whether as many calibrate as the threshold takes

    def notes(self, what: str) -> tuple[str, ...]:
        """What whoever relies on it should read.

        :param what: the units are
        """
        said = []
        if not self.established:
            said.append(
                f"guarantee not established: {self.units:,} {what} calibrate, fewer than the "
                "threshold takes; nothing is selected, and the last epoch is kept"
            )
        elif not len(self.selection):
            said.append(
                f"{self.units:,} {what} are held out, too few to select by as well as to "
                "calibrate: all calibrate, nothing is selected, and the last epoch is kept"
            )
        if len(self.spare):
            said.append(f"one image of each of {len(self.calibration):,} {what} calibrates")
        return tuple(said)


def assign(
    names: Sequence[str],
    labels: np.ndarray,
    alpha: float,
    units: Sequence[str] | None = None,
    seed: int = 0,
    selecting: bool = True,
) -> Places:
    r"""Divide held-out images into a part that selects and one that calibrates.

    Half of the units calibrate, and at least as many as make the threshold not the largest score,
    see :func:`calibrating_steps`. If fewer than ``FEWEST_SELECT`` images remain, nothing is
    selected and all calibrate. One random image of each unit does. With fewer units than the
    threshold takes, all images calibrate and the guarantee is not established.

    Parts are drawn class by class, by systematic sampling from a random start: each image is as
    likely as any other, and a class's count differs by less than one from its due. They depend on
    names, labels, units and the seed, not on the order.

    :param names: of the images, each another
    :param labels: :math:`N`, their classes
    :param alpha: false-alarm rate of the threshold
    :param units: :math:`N`, what stays together; each image for itself if not given
    :param selecting: whether some are to select
    :raises ValueError: if lengths differ, or a name is there twice
    """
    keys = list(names if units is None else units)
    if not len(names) == len(set(names)) == len(labels) == len(keys):
        raise ValueError(
            f"{len(names)} names ({len(set(names))} of them different), {len(labels)} labels, "
            f"{len(keys)} units; expected as many of each"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        members[key].append(at)
    ordered = _spread(_classes(keys, labels), f"{seed} calibrate")
    established = len(ordered) >= RejectionThreshold(alpha).samples_needed
    calibrating = len(ordered)
    if selecting and established:
        fitting = [n for n in calibrating_steps(alpha) if n + FEWEST_SELECT <= len(ordered)]
        if fitting:
            half = math.ceil(len(ordered) / 2)
            calibrating = max(fitting[0], min(half, len(ordered) - FEWEST_SELECT))
        rest = sum(len(members[key]) for key in ordered[calibrating:])
        calibrating = calibrating if rest >= FEWEST_SELECT else len(ordered)
    calibration = [at for key in ordered[:calibrating] for at in members[key]]
    spare: list[int] = []
    if established:
        drawn = ordered[:calibrating]
        chosen = {min(members[key], key=lambda at: _hash(seed, names[at])) for key in drawn}
        spare = [at for at in calibration if at not in chosen]
        calibration = list(chosen)
    selection = [at for key in ordered[calibrating:] for at in members[key]]
    parts = [np.array(sorted(part), dtype=int) for part in (selection, calibration, spare)]
    return Places(parts[0], parts[1], parts[2], len(ordered), established)


def _held_by_class(
    classes: Mapping[str, int], share: float, seed: int, images: Images
) -> list[str]:
    """A share of the units of each class, at least one, and not all."""
    generator = np.random.default_rng(seed)
    by_class: dict[int, list[str]] = defaultdict(list)
    for unit, label in classes.items():
        by_class[label].append(unit)
    held: list[str] = []
    for label in sorted(by_class):
        mine = by_class[label]
        if len(mine) < 2:
            raise InputError(
                f"class {images.class_names[label]!r} of {images.name} has one image only; it "
                "takes two to hold some out: give it more, or leave the class out"
            )
        held += [mine[at] for at in generator.permutation(len(mine))[: _of_class(len(mine), share)]]
    return held


def _of_class(count: int, share: float) -> int:
    return min(max(1, round(share * count)), count - 1)


def _count(classes: Mapping[str, int], share: float) -> int:
    counts = np.bincount(list(classes.values()))
    return sum(_of_class(int(count), share) for count in counts if count)


def _held(classes: Mapping[str, int], share: float, salt: str) -> list[str]:
    """A share of all units, drawn by class; the last of each class stays."""
    if not 0 < share < 1:
        raise InputError(f"the share to hold out is {share}; expected more than 0, less than 1")
    ordered = _spread(classes, salt)
    last = set({classes[key]: key for key in ordered}.values())  # of each class
    free = [key for key in ordered if key not in last]
    if not free:
        raise InputError(
            "each class has one image or one group only, so that none can be held out; give more"
        )
    return free[: max(1, round(share * len(classes)))]


def _spread(classes: Mapping[str, int], salt: str) -> list[str]:
    """Keys in random order, any beginning of which holds each class in proportion.

    The i-th of a class of n comes at (i + u) / n, with u in [0, 1) drawn for the class.
    """
    shuffled = sorted(classes, key=lambda key: _hash(salt, key))
    by_class: dict[int, list[str]] = defaultdict(list)
    for key in shuffled:
        by_class[classes[key]].append(key)
    places = {}
    for keys in by_class.values():
        start = int(_hash(salt, "start", keys[0])[:12], 16) / 16**12
        places.update({key: (at + start) / len(keys) for at, key in enumerate(keys)})
    return sorted(shuffled, key=lambda key: places[key])


def _hash(*parts: object) -> str:
    text = "\0".join(map(str, parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# -- On record -----------------------------------------------------------------------------------


def table_of_splits(sets: Sequence[tuple[str, Images | None]]) -> pd.DataFrame:
    """Which image was of which part: set, split, path, class.

    :param sets: each with the name of its part
    """
    tables = [
        pd.DataFrame(
            {
                "set": images.name,
                "split": split,
                "path": as_they_are(_paths(images)),
                "class": [images.class_of(position) for position in range(len(images))],
            }
        )
        for split, images in sets
        if images is not None and len(images)
    ]
    return pd.concat(tables, ignore_index=True)


def recorded_parts(table: Path, images: Images) -> list[str]:
    """What each training image was for, as :func:`table_of_splits` has it in a file; empty for
    those that it does not have, of all if there is no file.

    Images without files are known by the names of their set and their numbers in it.
    """
    unknown = [""] * len(images)
    if not table.is_file():
        return unknown
    splits = read_table(table, dtype=object, na_values=[])
    if images.paths:
        resolved = [os.path.realpath(as_path(path)) for path in splits["path"]]
        part_of = dict(zip(resolved, splits["split"], strict=True))
        return [part_of.get(os.path.realpath(path), "") for path in _paths(images)]
    mine = splits[(splits["set"] == images.name) & splits["split"].isin(_OF_TRAINING)]
    if mine["path"].duplicated().any():  # of several sources, such as a validation set
        return unknown
    part_of = dict(zip(mine["path"], mine["split"], strict=True))
    return [part_of.get(name, "") for name in _paths(images)]


def _paths(images: Images) -> list[str]:
    """From the root on, so that they are found from any folder."""
    names = [images.name_of(position) for position in range(len(images))]
    return list(map(os.path.abspath, names)) if images.paths else names
