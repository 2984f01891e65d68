"""What an exported file says of itself, for those who write it and those who read it."""

import math
from typing import Any

import numpy as np

from isomax_adapters.runtime.decoding import CHANNELS, MAX_PIXELS, Decoding
from isomax_adapters.runtime.p_values import Steps

METADATA_KEY, METADATA_FORMAT = "isomax", 1
OUTPUTS = {  # type and number of dimensions
    "label": ("tensor(int64)", 1),
    "confidence": ("tensor(float)", 1),
    "score": ("tensor(float)", 1),
    "is_ood": ("tensor(bool)", 1),
    "logits": ("tensor(float)", 2),
    "probabilities": ("tensor(float)", 2),
    "p_value": ("tensor(float)", 1),
}
#: key of the metadata -> what it means
FIELDS = {
    "format": "the format of file and metadata, a number",
    "class_names": "of the labels, in order",
    "precision": "fp32, fp16 or int8",
    "preprocessing": "what the graph does to an image: input_size (channels, height, width), "
    "interpolation, crop_pct, crop_mode, mean, std; grey_range, where grey of more than 8 bits was "
    "trained with one; orientation, upright where EXIF was applied",
    "provenance": "architecture, and versions of what the file was made with",
    "score": "the detector",
    "temperature": "what logits are divided by before the softmax",
    "alpha": "the false-alarm rate: is_ood is p_value <= alpha",
    "threshold": "the score above which it is",
    "scores": "of the calibration images, in order; p-values come from them",
    "scored_by": "what computed them: file, its own graph; or PyTorch, where a detector's inputs "
    "are not kept",
    "samples": "how many these are",
    "tolerance": "by how much scores may differ between runtimes; smaller differences are ties",
    "guarantee": "established, not established or unknown",
}


def check_metadata(metadata: dict[str, Any], classes: object) -> None:
    """Find that all is there that scoring relies on.

    :param classes: how many logits it has
    :raises Exception: of any kind if not, since JSON can hold anything
    """
    if metadata["format"] != METADATA_FORMAT:
        raise ValueError(f"format {metadata['format']!r}, this version reads {METADATA_FORMAT}")
    names = metadata["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is not a list of strings")
    if len(names) != classes:
        raise ValueError(f"{len(names)} class names for {classes} classes")
    "".join(names).encode()  # lone surrogates cannot be printed
    _check_calibration(metadata)
    config = metadata["preprocessing"]
    if config.get("crop_mode") not in (None, "center", "squash", "border"):
        raise ValueError(f"crop_mode is {config['crop_mode']!r}")
    channels, *size = config["input_size"]
    if channels not in CHANNELS or len(size) != 2 or not all(isinstance(n, int) for n in size):
        raise ValueError("input_size is not [1, 3 or 4, height, width]")
    Decoding(channels).with_options(config)
    if not all(1 <= side <= MAX_PIXELS for side in scaled_size(config)):
        raise ValueError("input_size and crop_pct give no size to resize to")


def _check_calibration(metadata: dict[str, Any]) -> None:
    samples, scores = metadata["samples"], metadata["scores"]
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is {samples!r}, not a count")
    if not isinstance(scores, list) or len(scores) != samples:
        raise ValueError(f"scores is not a list of {samples} numbers")
    numbers = [metadata[name] for name in ("threshold", "alpha", "tolerance", "temperature")]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in [*numbers, *scores]):
        raise ValueError("a threshold, rate, tolerance, temperature or score is no finite number")
    if scores != sorted(scores):
        raise ValueError("the calibration scores are not in order")
    if metadata["tolerance"] < 0:
        raise ValueError(f"tolerance is {metadata['tolerance']}")
    if not 0 < metadata["alpha"] < 1 or Steps.of(metadata).threshold(metadata["alpha"]) is None:
        raise ValueError(f"alpha is {metadata['alpha']} with {samples} scores")


def scaled_size(config: dict[str, Any]) -> tuple[int, int]:
    """Height and width that the crop is taken from: the input size over ``crop_pct``."""
    height, width = (math.floor(side / config["crop_pct"]) for side in config["input_size"][1:])
    return height, width


def resized(config: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width to which the graph resizes an image before it crops."""
    scaled = scaled_size(config)
    crop_mode = config.get("crop_mode") or "center"
    if crop_mode == "squash":
        return scaled
    if crop_mode == "center" and scaled[0] == scaled[1]:
        shortest = min(height, width)
        return height * scaled[0] // shortest, width * scaled[0] // shortest
    # in float32, as the graph has it
    size = np.array([height, width], np.float32)
    ratios = size / np.array(scaled, np.float32)
    ratio = ratios.min() if crop_mode == "center" else ratios.max()
    new_height, new_width = np.round(size / ratio)
    return int(new_height), int(new_width)
