"""Images of any size made one size by Pillow, as timm's transform does it.

What comes out is what an exported graph's own resize leaves as it is, so that images of different
sizes share a batch, and the network gets the pixels that it was trained on.
"""

from typing import Any

import numpy as np
from PIL import Image

from isomax_adapters.runtime.metadata import resized, scaled_size

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_size_of_graph(image: Image.Image, config: dict[str, Any]) -> np.ndarray:
    """An image as the graph would have it before it crops, and cropped or padded to what it crops
    from: ``[h, w, C]`` with ``h, w`` the model's input size over ``crop_pct``.

    The crop that the graph then takes from it is the one that it would take from the whole image:
    with :math:`s` the size here and :math:`c` that of the crop, which begins at :math:`\\lfloor (s
    - c) / 2 \\rceil`, the first row of the image comes to lie where both together put it.

    :param image: 8 bits per channel, of the mode that the model takes
    :param config: preprocessing, as the file's metadata say
    """
    scaled = scaled_size(config)
    height, width = resized(config, image.height, image.width)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), FILTERS[config["interpolation"]])
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[:2] == scaled:
        return pixels
    fill = [round(255 * value) for value in config["mean"]]
    made = np.full((*scaled, pixels.shape[2]), fill, np.uint8)
    here, there = zip(
        *(
            _window(*sides)
            for sides in zip(pixels.shape[:2], scaled, config["input_size"][1:], strict=True)
        ),
        strict=True,
    )
    made[there] = pixels[here]
    return made


def _window(side: int, scaled: int, crop: int) -> tuple[slice, slice]:
    """Which rows of an image go where."""
    first = (crop - side) // 2 if side < crop else -round((side - crop) / 2)
    first += round((scaled - crop) / 2)
    start, end = max(first, 0), min(first + side, scaled)
    return slice(start - first, end - first), slice(start, end)
