"""What two sets of files share."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from isomax_evaluation.data.listing.listing import Listing

_BEGINNING = 4096  # bytes, which tell most files of the same size apart

_Pair = tuple[Sequence[str], Sequence[str]]


def shared_files(first: Listing, second: Listing) -> list[tuple[str, str]]:
    """Files with the same content in both, such as training images to be tested on.

    Sizes are compared first, then beginnings, then all: what has no counterpart is not read on.

    :return: a path of the first and one of the second, for each of the second that has any
    :raises OSError: if a file cannot be read
    """
    alike: list[_Pair] = [(first.paths, second.paths)]
    for key in (os.path.getsize, _sha256_of_beginning, _sha256):
        alike = [part for pair in alike for part in _parts(pair, key)]
    counterpart = {path: ours[0] for ours, theirs in alike for path in theirs}
    return [(counterpart[path], path) for path in second.paths if path in counterpart]


def _parts(pair: _Pair, key: Callable[[str], object]) -> Iterator[_Pair]:
    """Those with the same key, where both sides have some."""
    parts: dict[object, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, paths in enumerate(pair):
        for path in paths:
            parts[key(path)][side].append(path)
    return (part for part in parts.values() if all(part))


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of_beginning(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_BEGINNING)).hexdigest()
