"""The images that an export is given: to reduce the network with, to judge it by, to calibrate it
on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isomax.calibration import RejectionThreshold
from isomax_adapters.onnx.graph import preprocessing
from isomax_adapters.onnx.precision import PRECISIONS
from isomax_adapters.onnx.running import session_of
from isomax_adapters.runtime.decoding import Decoding, from_array, open_image
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.runtime.resizing import to_size_of_graph

CALIBRATION_IMAGES = 256  # more of them hardly move the ranges of the activations
FEWEST_CALIBRATION_IMAGES = 32  # with fewer, the ranges are too narrow for other images

ImageSource = str | os.PathLike | np.ndarray


@dataclass(frozen=True)
class Labelled:
    """ID images that the model was not trained on, and their classes."""

    images: Sequence[ImageSource]  #: paths or uint8 arrays ``[H, W, C]``
    labels: Sequence[int]


def check_labelled(
    precision: str,
    selection: Labelled | None,
    held_out: Labelled | None,
    classes: int,
    alpha: float,
) -> None:
    """
    :raises InputError: if these images are not for this precision, or cannot be what they are for
    """
    for name, given in (("selection", selection), ("held_out", held_out)):
        if given is None:
            continue
        if precision == "fp32":
            raise InputError(
                f"{name} images are for fp16 and int8; fp32 keeps what the folder was calibrated on"
            )
        if len(given.images) != len(given.labels) or not len(given.images):
            raise InputError(f"{name}: {len(given.images)} images and {len(given.labels)} labels")
        if min(given.labels) < 0 or max(given.labels) >= classes:
            raise InputError(
                f"{name}: labels lie in [{min(given.labels)}, {max(given.labels)}]; expected "
                f"[0, {classes})"
            )
    needed = RejectionThreshold(alpha).samples_needed
    if held_out is not None and len(held_out.images) < needed:
        raise InputError(
            f"{len(held_out.images)} held-out images are too few; alpha={alpha:g} takes {needed}"
        )


def calibration_sources(precision: str, given: Iterable[ImageSource] | None) -> list[ImageSource]:
    """At most ``CALIBRATION_IMAGES`` of the images for the ranges of ``int8``, evenly spaced.

    :raises InputError: if there are none or too few, or the precision takes none
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if (precision == "int8") != (given is not None):
        raise InputError(
            "int8 is calibrated on in-distribution images: pass some training images"
            if given is None
            else f"calibration images are for int8; {precision} takes none"
        )
    if given is None:
        return []
    if isinstance(given, (str, os.PathLike)):
        raise InputError(f"calibration images are {given}; give a list of files, or of arrays")
    found = list(given)
    if not found:
        raise InputError("there are no calibration images")
    if len(found) < FEWEST_CALIBRATION_IMAGES:
        raise InputError(
            f"{len(found)} calibration images are too few; int8 takes at least "
            f"{FEWEST_CALIBRATION_IMAGES} to learn the ranges of the activations, and "
            f"{CALIBRATION_IMAGES} do best"
        )
    places = np.linspace(0, len(found) - 1, min(len(found), CALIBRATION_IMAGES))
    return [found[index] for index in places.round().astype(int)]


def decoded(source: ImageSource, decoding: Decoding) -> np.ndarray:
    """An image as the model takes it, uint8 ``[H, W, C]``.

    :raises InputError: if it is an array of another kind, or cannot be read
    """
    channels = decoding.channels
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != channels:
            raise InputError(
                f"a calibration image is {source.dtype} of shape {source.shape}; expected uint8 "
                f"[H, W, {channels}]"
            )
        return source
    try:
        with open_image(source) as image:
            return decoding.array(image)
    except Exception as error:  # Pillow's decoders raise whatever they please
        raise InputError(f"calibration image {source} cannot be read: {error}") from error


def as_network_gets_them(
    images: Iterable[np.ndarray], config: dict[str, Any]
) -> Iterator[np.ndarray]:
    """Of images, uint8 ``[H, W, C]``, what an exported file and the runtime before it make: batches
    of one, float ``[1, C, h, w]``."""
    session = session_of(preprocessing(config, opset=18, ir_version=10))
    for image in images:
        made = to_size_of_graph(from_array(image), config)
        yield session.run(None, {"images": made[None]})[0]
