"""Images as they are read, in training and in scoring alike.

They are taken as they are stored: an EXIF orientation is not applied.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
}
# Pillow's readers of these, whatever a file is called: some others start programs (EPS), or hold
# more pixels than they say (ICO)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB.

    16-bit grey is scaled to 8 bits (Pillow's own conversion clips it to white).

    :raises ValueError: if the values have no known range (32-bit integers, floats)
    """
    if image.mode.startswith("I;16"):
        shifted = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(shifted.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode} have no known range; save the image with 8 or 16 bits"
        )
    return image.convert("RGB")


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Files as given, and the image files in folders, recursively, sorted within each folder.

    Links to folders are followed; a folder that is reached twice is read once.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield os.fspath(path)
            continue
        errors: list[OSError] = []
        visited: set[object] = set()
        folders = os.walk(os.fspath(path), onerror=errors.append, followlinks=True)
        for folder, subfolders, files in folders:
            if (known := _identity(folder)) in visited:
                subfolders.clear()
                continue
            visited.add(known)
            subfolders.sort()
            for file in sorted(files):
                if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                    yield str(Path(folder) / file)
        # a folder that cannot be read becomes a row with an error
        yield from (str(error.filename) for error in errors)


def _identity(folder: str) -> object:
    try:
        status = os.stat(folder)
    except OSError:  # it has just vanished
        return folder
    return status.st_dev, status.st_ino
