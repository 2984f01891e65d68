"""What a dataset is, in a few words and in a digest."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from isomax_evaluation.data.images import Images
from isomax_evaluation.data.reading import read_once


def describe(split: str, images: Images) -> dict[str, Any]:
    """Name, digest, size and origin of a dataset."""
    source = os.path.abspath(os.path.commonpath(images.paths)) if images.paths else images.name
    return {
        "name": Path(images.name).name,
        "split": split,
        "digest": digest(images),
        "size": len(images),
        "classes": len(images.class_names),
        "source": source,
    }


def digest(images: Images) -> str:
    """16 hexadecimal digits that change with the choice of images, their labels and class names,
    the names of their files, and their content."""
    found = hashlib.sha256(repr(images.class_names).encode())
    found.update(np.ascontiguousarray(images.labels, dtype=np.int64).tobytes())
    if images.paths:
        for index in images.indices:
            path = Path(images.paths[index])
            found.update(os.fsencode(f"{path.parent.name}/{path.name}\n"))
    prints = images.fingerprints
    found.update((read_once(images, 0)[1] if prints is None else prints).tobytes())
    return found.hexdigest()[:16]
