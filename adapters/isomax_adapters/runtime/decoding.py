"""The pixels of an image file: what they mean, as 8 bits.

The same in training and in scoring, so also here what a file leaves open:

- *Depth*. Of a grey value :math:`v` of more than 8 bits, :math:`\\lfloor 256 (v - l) / (h - l + 1)
  \\rfloor` is kept, with :math:`[l, h]` the range of the file's depth or the ``grey_range`` given,
  and :math:`v` clipped to it. Of the full 16 bits, these are the upper 8.
- *Sign*. White-is-zero TIFF is turned round, whatever its depth.
- *Transparency* is laid over white, :math:`\\lfloor (a c + (255 - a) 255) / 255 + 1/2 \\rfloor`.
- *Orientation* in EXIF is not applied, as timm does not, unless ``upright`` is asked for; that of
  TIFF is, as Pillow does. A colour profile is not applied.
- Of an animation, the first frame is taken.

What Pillow would silently read as something else is refused, by the name of the tag.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from PIL import (
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    UnidentifiedImageError,
)

from isomax_adapters.runtime.errors import InputError

MAX_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
# Pillow's readers of these, whatever a file is called: some others start programs (EPS), or hold
# more pixels than they say (ICO)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
CHANNELS = (1, 3, 4)
ORIENTATIONS = ("stored", "upright")
BACKGROUND = 255  # white: most drawings on nothing are dark, and viewers show them on white

_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 258, 259, 262, 274  # TIFF tags
_PLANAR, _EXTRA, _SAMPLE_FORMAT = 284, 338, 339
_PLANES = ("RGB", "RGBA", "CMYK")  # of which Pillow reads separate ones of 8 bits
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # of 8 bits between two values of fewer
_OPTIONS = ("grey_range", "orientation")
_VALUES_AT_ONCE = 2**20
_SAVE_ANEW = "save the image as grey of 8 or 16 bits, or as RGB"

GreyRange = tuple[int, int]


class _Settings:
    """Pillow's settings, which are the process's, as they have to be while images are decoded.

    Other code's are back when the last thread has left.
    """

    OURS = (
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),  # half an image is none
        # text has nothing to do with pixels, but may take no more memory than they may
        (PngImagePlugin, "MAX_TEXT_CHUNK", 3 * MAX_PIXELS),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 3 * MAX_PIXELS),
    )

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [getattr(module, name) for module, name, _ in self.OURS]
                for module, name, value in self.OURS:
                    setattr(module, name, value)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for (module, name, _), value in zip(self.OURS, self._before, strict=True):
                    setattr(module, name, value)


_SETTINGS = _Settings()


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """An image, not yet decoded, of one of ``IMAGE_FORMATS``.

    :raises PIL.UnidentifiedImageError: if Pillow cannot read it; of a file that has the beginning
        of an image, it says why
    """
    try:
        with _SETTINGS:
            return Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        if reason := _why_unidentified(file):
            raise UnidentifiedImageError(reason) from error
        raise


def _checked_range(given: Any) -> GreyRange | None:
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


@dataclass(frozen=True)
class Decoding:
    """What becomes of an image: 8 bits of as many channels as a model takes.

    :raises InputError: if a value is none of those it may have
    """

    #: 1, for grey (mode ``L``, by ITU-R 601); 3, for RGB; 4, for RGB and the fourth band as it is
    #: stored, or 255 where there is none (mode ``RGBX``, whose bands are resized each for itself)
    channels: int = 3
    #: smallest and largest stored value of grey of more than 8 bits, if not those of its depth
    grey_range: GreyRange | None = None
    #: ``stored``, or ``upright``: turned as EXIF says
    orientation: str = "stored"

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise InputError(f"{self.channels} channels; expected 1, 3 or 4")
        if self.orientation not in ORIENTATIONS:
            raise InputError(
                f"orientation {self.orientation!r}; expected {' or '.join(ORIENTATIONS)}"
            )
        object.__setattr__(self, "grey_range", _checked_range(self.grey_range))

    @property
    def options(self) -> dict[str, Any]:
        """What is other than by default, but for the channels: as model folders and files say it
        beside the input size."""
        return {
            name: getattr(self, name)
            for name in _OPTIONS
            if getattr(self, name) != getattr(RGB, name)
        }

    def with_options(self, said: Mapping[str, Any]) -> "Decoding":
        """The same, but for what a model folder or a file says.

        :raises InputError: if that is none of the values it may have
        """
        return replace(
            self, **{name: said[name] for name in _OPTIONS if said.get(name) is not None}
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image as such. What it returns, it returns again as it is.

        :raises InputError: if the values have no known range (32-bit or signed integers without a
            ``grey_range``, floats), or a band has no known meaning
        """
        _check_meaning(image)
        load(image)
        turned = _orientation(image) if self.orientation == "upright" else 1
        made = self._of_bands(image)
        if turned != 1:
            made.info = {}  # where EXIF is
            made.getexif()[_ORIENTATION] = turned
            ImageOps.exif_transpose(made, in_place=True)
        return made

    def array(self, image: Image.Image) -> np.ndarray:
        """The same as uint8 ``[H, W, channels]``, as an exported model takes it."""
        pixels = np.asarray(self(image))
        return pixels[..., None] if self.channels == 1 else pixels

    def _of_bands(self, image: Image.Image) -> Image.Image:
        if is_deep(image):
            image = _shallow(image, self.grey_range)
        if image.mode == "La":  # Pillow turns it into nothing else
            image = image.convert("LA")
        if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
            image = image.convert("RGB")  # bytes that fill up to 32 bits
        if self.channels == 4:
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
        return image.convert("L") if self.channels == 1 else image


RGB = Decoding()


def load(image: Image.Image) -> None:
    """Decode an image where Pillow has not yet, without its text, and not the half of it.

    :raises Exception: whatever Pillow's readers raise
    """
    if image.format == "PNG" and (tile := getattr(image, "tile", None)):
        transparent = image.info.get("transparency")
        raw = tile[0][3]
        if image.mode == "L" and raw in _GREY_STEPS and isinstance(transparent, int):
            # of the values stored, which Pillow spreads over 8 bits
            image.info["transparency"] = transparent * _GREY_STEPS[raw]
        if raw == "RGB;16B" and transparent is not None:
            raise InputError(
                "tRNS of 16-bit colours: a transparent colour, of which Pillow keeps 8 bits; save "
                "the image with an alpha channel, or with 8 bits"
            )
    with _SETTINGS:
        image.load()


def turned_by_viewers(image: Image.Image) -> bool:
    """Whether EXIF says to turn an image, which is not done where it is read as it is stored."""
    load(image)  # of PNG, EXIF may come last
    return _orientation(image) != 1


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF has it; 1 of TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    found = image.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def from_array(pixels: np.ndarray) -> Image.Image:
    """The image that :meth:`Decoding.array` made the array of.

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


def _shallow(image: Image.Image, grey_range: GreyRange | None) -> Image.Image:
    low_high = grey_range or depth_range(image)
    if low_high is None:
        raise InputError(f"{_unknown_range(image)}; give a grey_range, or {_SAVE_ANEW}")
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
        raise InputError(f"{_unknown_range(image)}; {_SAVE_ANEW}")
    if 0 in _tag(image, _EXTRA, ()):
        raise InputError(
            "ExtraSamples 0: a band of unknown meaning, which Pillow drops; save the image without "
            "it, or with it as alpha (ExtraSamples 2) for a model of 4 channels"
        )
    if _tag(image, _PLANAR, 1) == 2 and len(_tag(image, _BITS, (1,))) > 1:
        _check_planes(image)
    if 2 in _tag(image, _SAMPLE_FORMAT, ()) and not is_deep(image):
        raise InputError("SampleFormat 2: signed values of 8 bits; save the image as unsigned")


def _check_planes(image: Image.Image) -> None:
    """Of separate planes Pillow misreads some, without a word."""
    raw, eight = _tag(image, _COMPRESSION, 1) == 1, set(_tag(image, _BITS, ())) == {8}
    if image.mode in ("LA", "La", "LAB") or (raw and not (eight and image.mode in _PLANES)):
        raise InputError(
            f"{_named(image.tag_v2, (_PLANAR, _BITS, _COMPRESSION))}: planes that Pillow misreads; "  # type: ignore[attr-defined]
            "save the image with PlanarConfiguration 1"
        )


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
