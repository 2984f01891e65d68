"""The pixels of an image file: what they mean, as 8 bits.

The same in training and in scoring, so also here what a file leaves open:

- *Depth*. Of a grey value :math:`v` of more than 8 bits, :math:`\\lfloor 256 (v - l) / (h - l + 1)
  \\rfloor` is kept, with :math:`[l, h]` the range of the file's depth or the ``grey_range`` given,
  and :math:`v` clipped to it. Of the full 16 bits, these are the upper 8.
- *Sign*. White-is-zero TIFF is turned round, whatever its depth.
- *Transparency* is laid over white, :math:`\\lfloor (a c + (255 - a) 255) / 255 + 1/2 \\rfloor`.
- *Orientation* in EXIF is not applied, nor a colour profile: pixels are taken as they are stored.
- Of an animation, the first frame is taken.

What Pillow would silently read as something else is refused, by the name of the tag.
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags, UnidentifiedImageError

from isomax_adapters.runtime.errors import InputError

MAX_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
# Pillow's readers of these, whatever a file is called: some others start programs (EPS), or hold
# more pixels than they say (ICO)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
CHANNELS = (1, 3, 4)
BACKGROUND = 255  # white: most drawings on nothing are dark, and viewers show them on white

_BITS, _PHOTOMETRIC, _EXTRA, _SAMPLE_FORMAT = 258, 262, 338, 339  # TIFF tags
_VALUES_AT_ONCE = 2**20
_SAVE_ANEW = "save the image as grey of 8 or 16 bits, or as RGB"

GreyRange = tuple[int, int]


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """An image, not yet decoded, of one of ``IMAGE_FORMATS``.

    :raises PIL.UnidentifiedImageError: if Pillow cannot read it; of a file that has the beginning
        of an image, it says why
    """
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        if reason := _why_unidentified(file):
            raise UnidentifiedImageError(reason) from error
        raise


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, see :func:`as_pixels`."""
    return as_pixels(image)


def as_pixels(
    image: Image.Image, channels: int = 3, grey_range: GreyRange | None = None
) -> Image.Image:
    """An image as 8 bits per channel.

    What it returns, it returns again as it is.

    :param channels: 1, for grey (mode ``L``, by ITU-R 601); 3, for RGB; 4, for RGB and the fourth
        band as it is stored, or 255 where there is none (mode ``RGBX``, whose bands are resized
        each for itself)
    :param grey_range: the smallest and largest of the stored values of grey images of more than 8
        bits, if not those that their depth allows
    :raises ValueError: if the values have no known range (32-bit or signed integers without a
        ``grey_range``, floats), or a band has no known meaning
    """
    if channels not in CHANNELS:
        raise ValueError(f"{channels} channels; expected 1, 3 or 4")
    grey_range = check_grey_range(grey_range)
    _check_meaning(image)
    if is_deep(image):
        image = _shallow(image, grey_range)
    if image.mode == "La":  # Pillow turns it into nothing else
        image = image.convert("LA")
    if channels == 4:
        if image.mode == "RGBX":  # read already
            return image
        if not image.has_transparency_data:
            image = image.convert("RGB")
        return Image.merge("RGBX", image.convert("RGBA").split())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, (BACKGROUND,) * 3)
        background.paste(image, mask=image.getchannel("A"))
        image = background
    image = image.convert("RGB")
    return image.convert("L") if channels == 1 else image


def as_array(
    image: Image.Image, channels: int = 3, grey_range: GreyRange | None = None
) -> np.ndarray:
    """The same as uint8 ``[H, W, channels]``, as an exported model takes it."""
    pixels = np.asarray(as_pixels(image, channels, grey_range))
    return pixels[..., None] if channels == 1 else pixels


def from_array(pixels: np.ndarray) -> Image.Image:
    """The image that :func:`as_array` made the array of.

    :param pixels: uint8 ``[H, W, 1 | 3 | 4]``
    """
    height, width, channels = pixels.shape
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())


def is_deep(image: Image.Image) -> bool:
    """Whether it is a grey image of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def depth_range(image: Image.Image) -> GreyRange | None:
    """The values that a grey image of more than 8 bits can hold, if its file says.

    Pillow stretches PGM of any depth to 16 bits.
    """
    if image.mode == "I" and image.format != "PPM":
        return None
    bits = _tag(image, _BITS, (16,))[0]
    return 0, 2**bits - 1


def check_grey_range(given: Any) -> GreyRange | None:
    """A range of grey values, or ``None``.

    :raises InputError: if it is no pair of ascending whole numbers of 32 bits
    """
    if given is None:
        return None
    try:
        low, high = given
        whole = (int(low), int(high))
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != (low, high) or not -(2**31) <= whole[0] < whole[1] < 2**31:
        raise InputError(
            f"grey range {given!r}; expected the smallest and the largest stored value, such as "
            "(0, 4095)"
        )
    return whole


def _shallow(image: Image.Image, grey_range: GreyRange | None) -> Image.Image:
    low_high = grey_range or depth_range(image)
    if low_high is None:
        raise ValueError(f"{_unknown_range(image)}; give a grey_range, or {_SAVE_ANEW}")
    low, high = low_high
    stored = np.asarray(image)
    grey = np.empty(stored.shape, np.uint8)
    rows = max(1, _VALUES_AT_ONCE // max(1, stored.shape[1]))
    for top in range(0, len(stored), rows):  # in 64 bits, but not all of it at once
        values = stored[top : top + rows].astype(np.int64).clip(low, high) - low
        grey[top : top + rows] = values * 256 // (high - low + 1)
    # Pillow turns white-is-zero round with 8 bits only, and files that do not say are that to it
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 0) == 0:
        grey = 255 - grey
    shallow = Image.fromarray(grey)
    if (transparent := image.info.get("transparency")) is not None:
        opaque = np.where(stored == transparent, 0, 255).astype(np.uint8)
        shallow.putalpha(Image.fromarray(opaque))
    return shallow


def _check_meaning(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError(f"{_unknown_range(image)}; {_SAVE_ANEW}")
    if 0 in _tag(image, _EXTRA, ()):
        raise ValueError(
            "ExtraSamples 0: a band of unknown meaning, which Pillow drops; save the image without "
            "it, or with it as alpha (ExtraSamples 2) for a model of 4 channels"
        )
    if 2 in _tag(image, _SAMPLE_FORMAT, ()) and not is_deep(image):
        raise ValueError("SampleFormat 2: signed values of 8 bits; save the image as unsigned")


def _unknown_range(image: Image.Image) -> str:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    kind = _named(tags, (_BITS, _SAMPLE_FORMAT)) or f"mode {image.mode}"
    return f"pixels of {kind} have no known range"


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """A tag of a TIFF image; the default if it lacks it, or is no TIFF image."""
    return image.tag_v2.get(number, default) if image.format == "TIFF" else default  # type: ignore[attr-defined]


def _why_unidentified(file: str | os.PathLike[str] | IO[bytes]) -> str:
    """What Pillow, and in a TIFF file which tags, say against an image that it does not read."""
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else nullcontext(file) as opened:
        opened.seek(0)
        beginning = opened.read(16)
        for name in IMAGE_FORMATS:
            factory, accepts = Image.OPEN[name]
            if accepts is None or not accepts(beginning):
                continue
            opened.seek(0)
            try:
                factory(opened, "")
            except Exception as error:  # Pillow's readers raise whatever they please
                tags = _describe_tags(opened, beginning[:8]) if name == "TIFF" else ""
                return f"{name} that Pillow cannot read: {error}{tags}"
    if beginning[4:8] == b"ftyp":  # of phones, under any ending
        brand = beginning[8:12].decode("ascii", "replace").strip()
        return f"HEIC, AVIF or a film (ftyp {brand}), whatever its ending; save it as PNG or JPEG"
    return ""


def _describe_tags(file: IO[bytes], header: bytes) -> str:
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # as damaged as it may be
        return ""
    known = _named(tags, (_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _EXTRA))
    order = "big-endian" if header[:2] == b"MM" else "little-endian"
    return f" ({known}, {order}); {_SAVE_ANEW}" if known else ""


def _named(tags: Mapping[int, Any], numbers: tuple[int, ...]) -> str:
    listed = []
    for number in numbers:
        if number in tags:
            value = tags[number]
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            listed.append(f"{TiffTags.lookup(number).name} {text}")
    return ", ".join(listed)
