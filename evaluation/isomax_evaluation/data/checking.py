"""What the pixels of some images give away before anything is trained on them."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from PIL import Image

from isomax_adapters.runtime.decoding import (
    RGB,
    Decoding,
    GreyRange,
    depth_range,
    is_deep,
    open_image,
    turned_by_viewers,
)

FEWEST_LEVELS = 64  # of the 256 that 8 bits have
_EXAMPLES = 3
_MASK = re.compile(r"(.+)[_-](masks?|seg|segmentation|labels?|gt|annotation)", re.IGNORECASE)


@dataclass(frozen=True)
class PixelCheck:
    """What was seen in images that were looked at."""

    images: int  #: how many these are
    extremes: GreyRange | None  #: smallest and largest stored value of grey of more than 8 bits
    grey_levels: int | None  #: how many of 256 are left between these
    colour_levels: int | None  #: the same of colours of 16 bits, of which 8 are read
    constant: tuple[str, ...]  #: images of a single colour
    data_bands: tuple[str, ...]  #: images whose alpha looks like data: most of it is in between
    turned: tuple[str, ...]  #: images that EXIF says to turn, and that are read as they are stored

    def warnings(self) -> list[str]:
        """A sentence for each thing that looks wrong."""
        said = []
        if self.grey_levels is not None and self.grey_levels <= FEWEST_LEVELS:
            assert self.extremes is not None
            low, high = self.extremes
            bits = high.bit_length()
            said.append(
                f"grey values of more than 8 bits lie between {low} and {high}, so that "
                f"{self.grey_levels} of 256 levels are left of them; give the grey range "
                f"{low},{high}" + f", or 0,{2**bits - 1} if they have {bits} bits" * (low >= 0)
            )
        if self.colour_levels is not None and self.colour_levels <= FEWEST_LEVELS:
            said.append(
                f"colours of 16 bits use so little of their range that {self.colour_levels} of 256 "
                "levels are left of them; save the images with 8 bits"
            )
        for paths, what in (
            (self.constant, "are of a single colour"),
            (self.data_bands, "have an alpha channel that looks like data, not transparency: it is "
             "laid over white, or with 4 channels kept"),
            (self.turned, "are turned by viewers, as EXIF says, but read as they are stored, as "
             "timm reads them; orientation upright turns them"),
        ):  # fmt: skip
            if paths:
                more = ", ..." * (len(paths) > _EXAMPLES)
                shown = ", ".join(paths[:_EXAMPLES]) + more
                said.append(f"{len(paths)} of {self.images} images {what} ({shown})")
        return said


def check_pixels(
    paths: Sequence[str],
    decoding: Decoding = RGB,
    at_most: int | None = 256,
) -> PixelCheck:
    """Look at some images, evenly spaced among all.

    :param paths: images that decode
    :param decoding: how they are read; ``extremes`` of all training images is a ``grey_range``
    :param at_most: how many to look at; all of them if ``None``
    :raises Exception: whatever Pillow raises of an image that does not decode
    """
    count = len(paths) if at_most is None else min(len(paths), at_most)
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    lowest: list[int] = []
    highest: list[int] = []
    ranges: list[GreyRange] = []
    brightest: list[int] = []
    constant, data_bands, turned = [], [], []
    for path in (paths[at] for at in chosen):
        with open_image(path) as image:
            deep_colour = not is_deep(image) and ";16" in str(getattr(image, "tile", ""))
            if turned_by_viewers(image) and decoding.orientation == "stored":
                turned.append(path)
            if is_deep(image):
                pixels = np.asarray(image)[..., None]
                lowest.append(int(pixels.min()))
                highest.append(int(pixels.max()))
                if known := decoding.grey_range or depth_range(image):
                    ranges.append(known)
            else:
                if _holds_data(image):
                    data_bands.append(path)
                pixels = decoding.array(image)
                if deep_colour:
                    brightest.append(int(pixels.max()))
        if (pixels == pixels[0, 0]).all():
            constant.append(path)
    extremes = (min(lowest), max(highest)) if lowest else None
    return PixelCheck(
        images=count,
        extremes=extremes,
        grey_levels=_levels(extremes, ranges) if extremes and ranges else None,
        colour_levels=max(brightest) + 1 if brightest else None,
        constant=tuple(constant),
        data_bands=tuple(data_bands),
        turned=tuple(turned),
    )


def masks_beside(paths: Sequence[str]) -> list[str]:
    """Those of some files that are called a mask of an image that lies beside them, such as
    ``x_mask.png`` beside ``x.jpg``."""
    named: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in paths:
        if found := _MASK.fullmatch(PurePath(path).stem):
            named[os.path.dirname(path)].append((found[1], path))
    masks = []
    for folder, pairs in named.items():
        there = {PurePath(name).stem for name in os.listdir(folder or ".")}
        masks += [path for of, path in pairs if of in there]
    return masks


def _levels(extremes: GreyRange, ranges: Sequence[GreyRange]) -> int:
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    used = min(extremes[1], high) - max(extremes[0], low) + 1
    return min(256, max(1, used * 256 // (high - low + 1)))


def _holds_data(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "LA"):
        return False
    alpha = np.asarray(image.getchannel("A"))
    return bool(((alpha > 0) & (alpha < 255)).mean() > 0.5)
