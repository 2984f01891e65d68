import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def isomax():
    """The command, as a subprocess."""

    def run(*args, **kwargs):
        code = "import sys; from isomax_evaluation.cli import main; sys.argv[0] = 'isomax'; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            **kwargs,
        )

    return run


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


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three classes of 40 images."""
    return make_folder(tmp_path_factory.mktemp("photos"), ("ash", "birch", "cedar"), 40)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A comparison on the digits, short but whole."""
    from isomax_evaluation import compare
    from isomax_evaluation.recipes import RECIPES

    output = tmp_path_factory.mktemp("compare") / "out"
    return compare(output=output, seeds=2, recipe=replace(RECIPES["digits"], epochs=2))
