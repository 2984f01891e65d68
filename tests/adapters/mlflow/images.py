"""Encoded images, and what is none."""

import io

import numpy as np
from PIL import Image


def good_images(count, seed=0):
    """PNGs and JPEGs of several sizes."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        size = (16 + index % 5, 16 + index % 3, 3)
        pixels = generator.integers(0, 256, 3) + generator.normal(0, 20, size)
        file = io.BytesIO()
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(file, "PNG" if index % 2 else "JPEG")
        made.append(file.getvalue())
    return made


def bad_images():
    """Text, nothing, a file that is cut off."""
    return [b"not an image", b"", good_images(2)[1][:150]]
