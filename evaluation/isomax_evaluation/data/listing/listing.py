"""Labelled image files, in an order that is the same in every process and on every machine."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from isomax_evaluation.output.errors import InputError

EXAMPLES = 3  # of what was left out for one reason


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that were not taken, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...]  #: the first few, relative to the folder that was scanned

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.reason}: {self.count:,} ({', '.join(map(printable, self.examples))}{more})"


class LeavingOut:
    """Collects what is left out."""

    def __init__(self) -> None:
        self._seen: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._seen.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)

    def has(self, reason: str) -> bool:
        """Whether anything was left out for it."""
        return reason in self._counts

    def listed(self) -> tuple[LeftOut, ...]:
        """Most frequent reason first."""
        reasons = sorted(self._counts, key=lambda reason: (-self._counts[reason], reason))
        return tuple(LeftOut(r, self._counts[r], tuple(self._seen[r])) for r in reasons)

    def __str__(self) -> str:
        return _left_out(self.listed())


@dataclass(frozen=True, eq=False)
class Listing:
    """The labelled images of one split."""

    root: str  #: what the names are relative to
    names: tuple[str, ...]  #: of the files, with slashes on every system
    labels: np.ndarray  #: the class of each image: a position in ``class_names``; -1 if unknown
    class_names: tuple[str, ...]  #: those of all splits, whether this one has images of each or not
    groups: tuple[str, ...] | None = None  #: of each image: what must not straddle splits
    left_out: tuple[LeftOut, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Where the files are."""
        return [os.path.join(self.root, *name.split("/")) for name in self.names]

    def counts(self) -> np.ndarray:
        """How many images each class has."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))

    def take(self, positions: Sequence[int] | np.ndarray) -> "Listing":
        """The part with these positions."""
        positions = np.asarray(positions, dtype=int)
        return replace(
            self,
            names=tuple(self.names[at] for at in positions),
            labels=self.labels[positions],
            groups=None if self.groups is None else tuple(self.groups[at] for at in positions),
        )

    def grouped_by_prefix(self, characters: int) -> "Listing":
        """The same, grouped by the first characters of the file names, whatever the folder.

        :raises InputError: if that is none
        """
        if characters < 1:
            raise InputError(f"groups by the first {characters} characters; expected at least 1")
        files = (name.rpartition("/")[2] for name in self.names)
        return replace(self, groups=tuple(file[:characters] for file in files))

    def __str__(self) -> str:
        """In one line: images, classes, the smallest class, groups, and what was left out."""
        counts = self.counts()
        present = np.flatnonzero(counts)
        text = _number(len(self), "image")
        if len(present):
            text += f", {_number(len(present), 'class')}"
            smallest = present[counts[present].argmin()]
            text += f", smallest {self.class_names[smallest]!r} with {counts[smallest]}"
        if self.groups is not None:
            text += f", {_number(len(set(self.groups)), 'group')}"
        return text + _left_out(self.left_out)


@dataclass(frozen=True, eq=False)
class Scan:
    """The splits of a dataset."""

    #: under ``train``, ``val`` and ``test``, those that there are; or all images under ``all``
    splits: Mapping[str, Listing]
    left_out: tuple[LeftOut, ...] = ()  #: beside the splits

    @property
    def train(self) -> Listing | None:
        """What is trained on; split it where there is no :attr:`test`."""
        return self.splits.get("train", self.splits.get("all"))

    @property
    def test(self) -> Listing | None:
        """What is tested on: ``test``, or ``val`` if that is the only one of the two."""
        return self.splits.get("test", self.splits.get("val"))

    @property
    def held_out(self) -> Listing | None:
        """What calibrates: ``val``, if there is a ``test`` as well."""
        return self.splits.get("val") if "test" in self.splits else None

    def __str__(self) -> str:
        """A line for each split."""
        lines = [f"{name}: {listing}" for name, listing in self.splits.items()]
        if self.left_out:
            lines.append("beside them" + _left_out(self.left_out))
        return "\n".join(lines)


def in_order(names: Iterable[str]) -> list[str]:
    """Names as a person would sort them: ``a2`` before ``a10``, ``B`` after ``a``.

    A total order: names that differ only in case or in leading zeros do not change places. It
    depends on neither the locale nor Python's version.
    """
    return sorted(names, key=_natural)


class Entry(NamedTuple):
    """A labelled file."""

    label: str
    name: str
    group: str | None = None


def listings(
    root: str,
    found: Mapping[str, Sequence[Entry]],
    class_map: Mapping[str, int] | None,
    left_out: Mapping[str, LeavingOut],
) -> dict[str, Listing]:
    """The listing of each split, by class and name.

    :raises InputError: if a split has a class that ``train`` has not, or the positions of the class
        map are not 0, 1, 2 and so on
    """
    classes = {split: {entry.label for entry in entries} for split, entries in found.items()}
    trained = classes.get("train", set().union(*classes.values()))
    for split, labels in classes.items():
        if unknown := in_order(labels - trained):
            shown = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
            raise InputError(
                f"the {split} split of {root} has classes without training images: {shown}; "
                "correct their names, take the split away, or give the labels as a CSV file"
            )
    names = in_order(trained) if class_map is None else class_order(class_map)
    position = {name: at for at, name in enumerate(names)}
    result = {}
    for split, entries in found.items():
        ordered = sorted(entries, key=lambda e: (position[e.label], e.name.split("/")))
        groups = tuple(entry.group for entry in ordered if entry.group is not None)
        result[split] = Listing(
            root=root,
            names=tuple(entry.name for entry in ordered),
            labels=np.array([position[entry.label] for entry in ordered], dtype=np.int64),
            class_names=tuple(names),
            groups=groups or None,
            left_out=left_out[split].listed() if split in left_out else (),
        )
    return result


def class_order(class_map: Mapping[str, int]) -> list[str]:
    """The classes of a class map by position.

    :raises ValueError: if the positions are not 0, 1, 2 and so on
    """
    names = sorted(class_map, key=lambda name: class_map[name])
    if [class_map[name] for name in names] != list(range(len(names))):
        raise InputError(
            f"the class map has the positions {sorted(class_map.values())[:10]}; expected each of "
            f"0 to {len(names) - 1} once"
        )
    return names


def _natural(name: str) -> tuple[list[tuple[int, bytes]], bytes]:
    encoded = name.encode("utf-8", "surrogateescape")
    parts = re.split(rb"([0-9]+)", encoded.lower())  # of ASCII letters only
    # text and digits take turns; of two numbers, the longer is larger
    key = [
        (len(p.lstrip(b"0")), p.lstrip(b"0")) if at % 2 else (0, p) for at, p in enumerate(parts)
    ]
    return key, encoded


def printable(name: str) -> str:
    """A name in one line, and in characters that a terminal takes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name
    )


def _number(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _left_out(reasons: tuple[LeftOut, ...]) -> str:
    return f"; left out: {'; '.join(map(str, reasons))}" if reasons else ""
