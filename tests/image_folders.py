"""Folders of images that tests make."""

import numpy as np
from PIL import Image


def make_folder(root, classes, count, size=(24, 24), seed=0):
    """A folder of JPEGs: each class is a colour with noise, so that a network can learn it."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        base = np.array([(40 + 90 * number) % 256, (200 - 70 * number) % 256, 120])
        for index in range(count):
            pixels = base + generator.normal(0, 40, (*size, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / f"{index:03}.jpg", quality=92)
    return root
