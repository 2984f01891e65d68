"""A few of the images that were scored, as files to try a model on."""

from pathlib import Path

import numpy as np
from PIL import Image

from isomax_adapters.runtime.decoding import RGB
from isomax_evaluation.data.images import Images
from isomax_evaluation.detection.testing.trial import TestSets
from isomax_evaluation.output.files import file_name, write_whole

FOLDER, EACH = "samples", 6


def write_samples(output: Path, tests: TestSets) -> None:
    """``samples/SET/``: some images of the ID test set and of each OOD set, PNG; of finished
    tensors, which are no images, none."""
    for images in (tests.known, *tests.unknown):
        for place in np.linspace(0, len(images) - 1, min(EACH, len(images))).astype(int):
            image = images.image(place)
            if isinstance(image, Image.Image):
                path = output / FOLDER / file_name(images.name) / f"{_name(images, place)}.png"
                write_whole(path, lambda at, image=image: RGB(image).save(at, "PNG"))  # type: ignore[misc]


def _name(images: Images, place: int) -> str:
    return file_name("-".join(filter(None, (images.class_of(place), str(place)))))
