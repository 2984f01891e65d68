"""Images that are there more than once: in one part, in several, under two labels, among OOD."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from isomax_evaluation.data.images import Images
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.output.errors import InputError, first_few
from isomax_evaluation.output.tables import as_they_are, write_table

SHOWN = 3  # pairs in a message


@dataclass(frozen=True)
class Settled:
    """Sets of images, no two of which share one."""

    parts: dict[str, Images]
    ood: list[Images]
    notes: list[str]  #: what was found and done


def table_of_copies(output: Path) -> Path:
    """The file that pairs go into, beside what is written."""
    return output.with_name(f"{output.name}-duplicates.csv")


def settle(
    parts: Mapping[str, Images | None],
    reading: Reading,
    table: Path,
    ood: Sequence[Images] = (),
    drawn: str = "",
) -> Settled:
    """No image is in two sets, nor in one under two labels, as far as images are known by their
    contents.

    :param parts: the parts of the ID data and their names, each going before those after it: with
        ``reading.drop_duplicates`` what two share stays in the first
    :param table: gets all pairs, where there are any
    :param ood: sets that share no image with ID
    :param drawn: the part whose images were drawn here, of those that all others have; it leaves
        them what they have, whatever is said of copies
    :raises InputError: naming what is there twice, the table, and the way out
    """
    given = {name: images for name, images in parts.items() if images is not None}
    notes: list[str] = []
    given = _without_contradictions(given, reading, table, notes)
    seen = np.array([], dtype=np.uint64)
    order = sorted(given, key=lambda name: name == drawn)  # the last one
    for place, name in enumerate(order):
        images = given[name]
        shared = np.isin(_contents(images), seen)
        if shared.any() and name != drawn and not reading.drop_duplicates:
            first = {
                one: given[one]
                for one in order[:place]
                if np.isin(_contents(given[one]), _contents(images)).any()
            }
            pairs = _pairs(first, {name: images}, table)
            raise InputError(
                f"{shared.sum():,} of the {name} images of {images.name} are also images of its "
                f"{' or '.join(first)} part: {pairs}; remove them, or give --drop-duplicates, "
                "which keeps one of each"
            )
        if shared.any():
            notes.append(f"{shared.sum():,} {name} images left out, copies of others")
            images = images.take(np.flatnonzero(~shared))
        given[name] = _within(name, images, reading, table, notes)
        seen = np.union1d(seen, _contents(given[name]))
    kept = [_without_id(images, seen, given, reading, table, notes) for images in ood]
    return Settled({name: given[name] for name in parts if name in given}, kept, notes)


def _contents(images: Images) -> np.ndarray:
    return np.empty(0, np.uint64) if images.contents is None else images.contents


def _without_contradictions(
    given: dict[str, Images], reading: Reading, table: Path, notes: list[str]
) -> dict[str, Images]:
    contents = np.concatenate([_contents(images) for images in given.values()])
    labels = np.concatenate([images.labels[: len(_contents(images))] for images in given.values()])
    pairs = np.unique(np.stack([contents, labels.astype(np.uint64)]), axis=1)
    found, counts = np.unique(pairs[0], return_counts=True)
    twice = found[counts > 1]
    if not len(twice) or reading.on_contradiction == "keep":
        return given
    if reading.on_contradiction == "refuse":
        alike = {
            name: images.take(np.flatnonzero(np.isin(_contents(images), twice)))
            for name, images in given.items()
        }
        raise InputError(
            f"{len(twice):,} images have several labels: {_pairs(alike, alike, table)}; correct "
            "them, or give --on-contradiction drop, which leaves them out, or keep"
        )
    left = {
        name: images.take(np.flatnonzero(~np.isin(_contents(images), twice)))
        for name, images in given.items()
    }
    dropped = sum(map(len, given.values())) - sum(map(len, left.values()))
    notes.append(f"{dropped:,} images left out, which have several labels")
    return left


def _within(name: str, images: Images, reading: Reading, table: Path, notes: list[str]) -> Images:
    _, first = np.unique(_contents(images), return_index=True)
    more = len(_contents(images)) - len(first)
    if not more:
        return images
    if reading.drop_duplicates:
        notes.append(f"{more:,} {name} images left out, copies of others")
        return images.take(np.sort(first))
    pairs = _pairs({name: images}, {name: images}, table)
    notes.append(
        f"{more:,} {name} images are copies of others ({pairs}); they stay together wherever "
        "images are divided; --drop-duplicates keeps one of each"
    )
    return images


def _without_id(
    images: Images,
    known: np.ndarray,
    parts: Mapping[str, Images],
    reading: Reading,
    table: Path,
    notes: list[str],
) -> Images:
    shared = np.isin(_contents(images), known)
    if not shared.any():
        return images
    if not reading.drop_duplicates:
        pairs = _pairs(parts, {images.name: images}, table)
        raise InputError(
            f"{shared.sum():,} of {len(images):,} images of the OOD set {images.name} are also ID "
            f"images: {pairs}; remove them, or give --drop-duplicates, which leaves them out"
        )
    notes.append(f"{images.name}: {shared.sum():,} images left out, which are ID images")
    return images.take(np.flatnonzero(~shared))


def _pairs(first: Mapping[str, Images], second: Mapping[str, Images], table: Path) -> str:
    """Write all pairs of images with the same content; the first few in words, and where all are.

    Of several copies, each is paired with the first one.
    """
    ours, theirs = _listed(first), _listed(second)
    head = ours.drop_duplicates("content")
    found = head.merge(theirs, on="content", suffixes=("", " of copy"))
    found = found[
        (found["path"] != found["path of copy"]) | (found["part"] != found["part of copy"])
    ]
    write_table(table, found.drop(columns="content"))
    shown = [f"{row[0]} and {row[1]}" for row in found[["path", "path of copy"]].to_numpy()]
    return f"{first_few(shown, SHOWN)}; all pairs are in {table}"


def _listed(sets: Mapping[str, Images]) -> pd.DataFrame:
    tables = [
        pd.DataFrame(
            {
                "part": name,
                "path": as_they_are(map(images.name_of, range(len(images)))),
                "class": as_they_are(map(images.class_of, range(len(images)))),
                "content": _contents(images),
            }
        )
        for name, images in sets.items()
    ]
    return pd.concat(tables, ignore_index=True)
