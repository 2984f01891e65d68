"""Held-out images, each for one purpose: what selects does not calibrate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation.data.images import Images, stratified_split
from isomax_evaluation.data.parts import Parts, split_parts
from isomax_evaluation.output.errors import input_errors
from isomax_evaluation.output.files import as_path
from isomax_evaluation.output.tables import as_they_are, read_table

_OF_TRAINING = ("train", "validation", "calibration")


@dataclass(frozen=True)
class Divided:
    """Training images, and two parts of those that are held out of them."""

    training: Images
    selection: Images | None  #: chooses epochs and hyperparameters; none if there are too few
    calibration: Images  #: sets temperature and threshold, and nothing else
    established: bool  #: whether the false-alarm rate is guaranteed
    notes: tuple[str, ...]  #: what whoever relies on it should read

    @property
    def held_out(self) -> int:
        """How many images train nothing."""
        selecting = 0 if self.selection is None else len(self.selection)
        return selecting + len(self.calibration)

    def decoded(self, decoding: Decoding) -> "Divided":
        """The same images, decoded in another way."""
        return replace(
            self,
            training=self.training.decoded(decoding),
            selection=None if self.selection is None else self.selection.decoded(decoding),
            calibration=self.calibration.decoded(decoding),
        )


def divide(train: Images, held_out: Images | None, needed: int, share: float, seed: int) -> Divided:
    """Hold images out of training, and divide them by class and group.

    Calibration is served first: with half of them, and at least ``needed``. With groups, one random
    image of each calibrates.

    :param train: labelled images
    :param held_out: a validation set of the user's own, in the place of a share of ``train``
    :param needed: how many images the threshold takes
    :param share: of the training images (or of their groups) to hold out
    :param seed: of the draw
    :raises InputError: if there are too few
    """
    with input_errors():
        if held_out is None and train.groups is not None:
            parts = split_parts(
                _names(train), train.labels, needed, share, train.groups.tolist(), seed
            )
            return _divided(train.take(parts.training), train, parts)
        more = "put more into its validation set"
        if held_out is None:
            train, held_out = stratified_split(train, share, seed)
            more = "give more training images, hold out more of them (isomax train --val-share)"
        groups = None if held_out.groups is None else held_out.groups.tolist()
        if groups is None and len(held_out) < needed:
            raise ValueError(
                f"the threshold takes {needed} validation images, there are {len(held_out)}; "
                f"{more}, or choose a larger alpha"
            )
        parts = split_parts(_names(held_out), held_out.labels, needed, 1.0, groups, seed)
        return _divided(train, held_out, parts)


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


def _divided(training: Images, held: Images, parts: Parts) -> Divided:
    selection = parts.selection
    return Divided(
        training,
        held.take(selection) if len(selection) else None,
        held.take(parts.calibration),
        parts.established,
        parts.notes,
    )


def _names(images: Images) -> list[str]:
    return [images.key_of(position) for position in range(len(images))]
