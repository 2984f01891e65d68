"""Held-out images in parts that serve one purpose each: what selects does not calibrate."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_SELECT = 20  # of fewer images, each is more than 5% of the accuracy


@dataclass(frozen=True, eq=False)
class Parts:
    """Positions of images, ascending; each image is in one part."""

    training: np.ndarray
    selection: np.ndarray  #: chooses epoch, recipe, hyperparameters, int8 layers; may be empty
    calibration: np.ndarray  #: sets temperature, threshold and p-values, and nothing else
    spare: np.ndarray  #: of the groups that calibrate, the images beside the one that does
    established: bool  #: whether the false-alarm rate is guaranteed for an image of a fresh group
    notes: tuple[str, ...]  #: what whoever relies on it should read


def hold_out(
    names: Sequence[str],
    labels: np.ndarray,
    share: float,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Positions of images to test on, drawn as :func:`split_parts` draws its parts.

    :param names: of the images, each another
    :param labels: their classes
    :param share: of the images (or groups), more than 0 and at most 1
    :param groups: of which patient, camera or day an image is; images of one stay together
    :raises ValueError: if nothing can be held out, or lengths or the share cannot be
    """
    members, classes = _units(names, labels, groups)
    held = _held(classes, share, f"{seed} test", "images" if groups is None else "groups")
    return np.array(sorted(at for key in held for at in members[key]), dtype=int)


def split_parts(
    names: Sequence[str],
    labels: np.ndarray,
    needed: int,
    share: float = 1.0,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Parts:
    r"""Hold images out, and split those into a part that selects and one that calibrates.

    Calibration is served first: with half of what is held out, and at least ``needed``. If fewer
    than ``FEWEST_SELECT`` images remain, nothing is selected and all of them calibrate.

    Images of one group stay together. One random image of each group calibrates: exchangeable is
    then an image of a fresh group, not another one of the same. With fewer than ``needed`` groups,
    all held-out images calibrate and the guarantee is not established.

    Parts are drawn class by class (a group's is the most frequent of its images), by systematic
    sampling from a random start: each image is as likely as any other, and a class's count differs
    by less than one from its due. They depend on names, labels, groups and the seed, not on the
    order. If not all are held out, one image (or group) of each class stays in training.

    :param names: of the images, each another
    :param labels: :math:`N`, their classes
    :param needed: what the threshold takes at least,
        ``isomax.RejectionThreshold(alpha).samples_needed``, :math:`\lceil 1 / \alpha - 1 \rceil`
    :param share: of the images (or groups) to hold out; 1 for a set that is held out already
    :param groups: :math:`N`, of which patient, camera or day an image is
    :raises ValueError: if too few are left to calibrate, nothing can be held out, or lengths or the
        share cannot be
    """
    members, classes = _units(names, labels, groups)
    kind = "images" if groups is None else "groups"
    held = _held(classes, share, f"{seed} hold out", kind)
    held_images = sum(len(members[key]) for key in held)
    if held_images < needed:
        raise ValueError(
            f"{held_images} images are held out and the threshold takes {needed}; hold out more, "
            "or choose a larger alpha"
        )
    ordered = _spread({key: classes[key] for key in held}, f"{seed} calibrate")
    established = len(held) >= needed
    calibrating = max(math.ceil(len(held) / 2), needed) if established else len(held)
    notes = []
    if sum(len(members[key]) for key in ordered[calibrating:]) < FEWEST_SELECT:
        calibrating = len(held)
        notes.append(
            f"{len(held):,} {kind} are held out, too few to select by as well as to calibrate: "
            "all calibrate, nothing is selected, and the last epoch is kept"
        )
    calibrated, selecting = ordered[:calibrating], ordered[calibrating:]
    calibration = [at for key in calibrated for at in members[key]]
    spare: list[int] = []
    if groups is not None and established:
        chosen = {min(members[key], key=lambda at: _hash(seed, names[at])) for key in calibrated}
        spare = [at for at in calibration if at not in chosen]
        calibration = list(chosen)
        notes.append(f"one image of each of {len(calibrated):,} groups calibrates")
    elif not established:
        notes.append(
            f"guarantee not established: {len(held):,} groups calibrate, and for an image of a "
            f"fresh group it takes {needed:,}"
        )
    selection = [at for key in selecting for at in members[key]]
    training = set(range(len(names))) - {*selection, *calibration, *spare}
    parts = [np.array(sorted(p), dtype=int) for p in (training, selection, calibration, spare)]
    return Parts(parts[0], parts[1], parts[2], parts[3], established, tuple(notes))


def _units(
    names: Sequence[str], labels: np.ndarray, groups: Sequence[str] | None
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The images of each unit that stays together, and its class."""
    labels = np.asarray(labels)
    if not len(names) == len(set(names)) == len(labels) == len(names if groups is None else groups):
        raise ValueError(
            f"{len(names)} names ({len(set(names))} of them different), {len(labels)} labels, "
            f"{'no' if groups is None else len(groups)} groups; expected as many of each"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for at, key in enumerate(names if groups is None else groups):
        members[key].append(at)
    return members, {key: int(np.bincount(labels[at]).argmax()) for key, at in members.items()}


def _held(classes: dict[str, int], share: float, salt: str, kind: str) -> list[str]:
    if not 0 < share <= 1:
        raise ValueError(f"the share to hold out is {share}; expected more than 0, at most 1")
    if share == 1:
        return list(classes)
    ordered = _spread(classes, salt)
    last = set({classes[key]: key for key in ordered}.values())  # of each class
    free = [key for key in ordered if key not in last]
    if not free:
        raise ValueError(
            f"each class is of one of the {kind} only, so that none can be held out; give more"
        )
    return free[: max(1, round(share * len(classes)))]


def _spread(classes: dict[str, int], salt: str) -> list[str]:
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
