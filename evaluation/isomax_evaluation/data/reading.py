"""Every image read once before work begins: those that do not decode are named, the others get a
fingerprint of their content."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch.utils import data as torch_data

from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError, first_few, one_line
from isomax_evaluation.output.progress import tell


def readable(images: Images, skip: bool, workers: int, progress: Progress) -> Images:
    """Images that all decode, with their fingerprints.

    :raises InputError: if some do not and ``skip`` is false
    """
    task = progress.add_task(f"checking {images.name}", total=len(images))
    bad, prints = read_once(images, workers, lambda done: progress.advance(task, done))
    progress.remove_task(task)
    images = replace(images, fingerprints=prints)
    if not bad:
        return images
    listed = first_few([f"{images.name_of(at)} ({reason})" for at, reason in bad.items()], 5)
    if not skip:
        raise InputError(
            f"{len(bad)} of {len(images)} images of {images.name} do not decode: {listed}; "
            "remove them, or leave them out with --skip-bad-images"
        )
    tell(progress, f"left out {len(bad)} images that do not decode: {listed}")
    return images.take(np.setdiff1d(np.arange(len(images)), list(bad)))


def check_apart(**sets: Images | None) -> None:
    """No file is in two of the sets.

    :param sets: what each is for, and its images, which have been read once
    :raises InputError: naming files of one content
    """
    given = {kind: images for kind, images in sets.items() if images is not None and images.paths}
    for (kind, images), (other_kind, others) in combinations(given.items(), 2):
        assert images.fingerprints is not None
        assert others.fingerprints is not None
        first = {print_: at for at, print_ in enumerate(images.fingerprints.tolist())}
        shared = [
            f"{images.name_of(first[print_])} and {others.name_of(at)}"
            for at, print_ in enumerate(others.fingerprints.tolist())
            if print_ in first
        ]
        if shared:
            raise InputError(
                f"{len(shared)} {other_kind} images of {images.name} are also {kind} images, to "
                f"the byte: {first_few(shared, 3)}; keep one of each"
            )


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
) -> tuple[dict[int, str], np.ndarray]:
    """Decode every image once.

    :param workers: processes to decode in
    :param progress: called with the number of images done since the last call
    :return: the positions of those that do not decode, with the reason; a fingerprint of each
        image: of its file, or of its pixels where there is no file
    """
    bad: dict[int, str] = {}
    prints: list[int] = []
    loader: torch_data.DataLoader = torch_data.DataLoader(
        _Read(images),
        batch_size=256,
        num_workers=0 if images.in_memory else workers,
        collate_fn=list,
    )
    for found in loader:
        bad |= {len(prints) + at: reason for at, (reason, _) in enumerate(found) if reason}
        prints += [fingerprint for _, fingerprint in found]
        progress(len(found))
    return bad, np.array(prints, dtype=np.uint64)


class _Read(torch_data.Dataset):
    """Why an image does not decode, empty if it does; and its fingerprint."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[str, int]:
        images = self.images
        name = images.name_of(position)
        try:
            image = images.image(position)
            if images.paths:
                content = Path(name).read_bytes()
            elif isinstance(image, torch.Tensor):
                content = image.contiguous().numpy().tobytes()
            else:
                content = repr(image.size).encode() + image.tobytes()
        except Exception as error:  # of a file that is gone, or a tensor of no type of numpy's
            reason = one_line(error.__cause__ or error)
            reason = reason.replace(f" {name!r}", "").replace(name, "the file")
            return reason.rstrip(": "), 0
        return "", int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
