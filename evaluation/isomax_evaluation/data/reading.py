"""Every image read once before work begins: those that do not decode are named, the others get
numbers that tell their files, and their pixels, from others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils import data as torch_data

from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError, first_few, one_line
from isomax_evaluation.output.progress import Progress, shown, tell


def readable(sets: Sequence[Images], skip: bool, workers: int, progress: Progress) -> list[Images]:
    """Images that all decode, with their fingerprints and contents.

    :param sets: parts of one data set, and others; what does not decode is told of all of a name
    :raises InputError: if some do not and ``skip`` is false
    """
    found: list[Images] = []
    bad: dict[str, list[str]] = {}
    for images in sets:
        with shown(progress, f"checking {images.name}", len(images)) as advance:
            reasons, prints, contents = read_once(images, workers, advance)
        bad.setdefault(images.name, [])
        bad[images.name] += [f"{images.name_of(at)} ({why})" for at, why in reasons.items()]
        images = replace(images, fingerprints=prints, contents=contents)
        good = np.setdiff1d(np.arange(len(images)), list(reasons))
        found.append(images.take(good) if reasons else images)
    for name, listed in bad.items():
        if listed and not skip:
            total = sum(len(images) for images in sets if images.name == name)
            raise InputError(
                f"{len(listed)} of {total} images of {name} do not decode: "
                f"{first_few(listed, 5)}; remove them, or leave them out with --skip-bad-images"
            )
        if listed:
            some = first_few(listed, 5)
            tell(progress, f"left out {len(listed)} images of {name} that do not decode: {some}")
    return found


def check_counts(train: Images, test: Images) -> list[str]:
    """Every class has images to train on, and there are some to test on.

    :return: what is missing that can be done without
    :raises InputError: naming what is empty
    """
    empty, untested = _without(train), _without(test)
    if empty:
        raise InputError(
            f"{len(empty)} of {len(train.class_names)} classes of {train.name} have no image to "
            f"train on that can be read: {first_few(empty, 5)}; repair them, or leave those "
            "classes out"
        )
    if not len(test):
        raise InputError(f"{test.name} has no image to test on that can be read")
    if not untested:
        return []
    return [
        f"{len(untested)} of {len(test.class_names)} classes of {test.name} have no image to test "
        f"on, so that nothing will be known of them: {first_few(untested, 5)}"
    ]


def _without(images: Images) -> list[str]:
    """The classes that have no image."""
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    return [name for name, n in zip(images.class_names, counts, strict=True) if n == 0]


def read_once(
    images: Images, workers: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    """Decode every image once.

    :param workers: processes to decode in
    :param progress: called with the number of images done since the last call
    :return: the positions of those that do not decode, with the reason; a fingerprint of each
        image: of its file, or of its pixels where there is no file; a number for the content of
        each, the same for the same pixels
    """
    bad: dict[int, str] = {}
    prints: list[int] = []
    contents: list[int] = []
    loader: torch_data.DataLoader = torch_data.DataLoader(
        _Read(images),
        batch_size=256,
        num_workers=0 if images.in_memory else workers,
        collate_fn=list,
    )
    for found in loader:
        bad |= {len(prints) + at: reason for at, (reason, *_) in enumerate(found) if reason}
        prints += [fingerprint for _, fingerprint, _ in found]
        contents += [content for *_, content in found]
        progress(len(found))
    return bad, np.array(prints, dtype=np.uint64), np.array(contents, dtype=np.uint64)


class _Read(torch_data.Dataset):
    """Why an image does not decode, empty if it does; its fingerprint, and that of its pixels."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[str, int, int]:
        images = self.images
        name = images.name_of(position)
        try:
            image = images.image(position)
            if isinstance(image, torch.Tensor):
                pixels = repr(image.shape).encode() + image.contiguous().numpy().tobytes()
            else:
                pixels = repr(image.size).encode() + image.tobytes()
            content = _number(pixels)
            fingerprint = _number(Path(name).read_bytes()) if images.paths else content
        except Exception as error:  # of a file that is gone, or a tensor of no type of numpy's
            reason = one_line(error.__cause__ or error)
            reason = reason.replace(f" {name!r}", "").replace(name, "the file")
            return reason.rstrip(": "), 0, 0
        return "", fingerprint, content


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
