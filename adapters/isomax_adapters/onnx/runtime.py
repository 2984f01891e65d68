"""Score images with an exported model: numpy, ONNX Runtime and Pillow, no PyTorch.

Images are taken as they are stored: an EXIF orientation is not applied, as in training.
"""

import copy
import io
import json
import math
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from isomax_adapters.onnx.safety import refers_to_other_files

METADATA_KEY, METADATA_FORMAT = "isomax", 1
OUTPUTS = {
    "label": "tensor(int64)",
    "confidence": "tensor(float)",
    "score": "tensor(float)",
    "is_ood": "tensor(bool)",
    "logits": "tensor(float)",
    "probabilities": "tensor(float)",
}
MAX_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
PIXELS_AT_ONCE = 32_000_000  # decoded and waiting, or in one batch; 100 MB
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}

Input = str | os.PathLike | bytes | bytearray | memoryview | np.ndarray


class ModelError(ValueError):
    """A file that is not a model exported by isomax, or one that is damaged."""


@dataclass(frozen=True)
class Result:
    """What the model says of one image; with ``error`` set it says nothing."""

    source: str  #: the path, or a name for what came without one
    label: int = -1
    class_name: str = ""
    confidence: float = float("nan")  #: calibrated probability of the label
    score: float = float("nan")  #: outlier score; larger means more likely OOD
    is_ood: bool = True  #: whether the score lies above the threshold
    error: str = ""


class Scorer:
    """An exported model, ready to score.

    >>> scorer = Scorer("model.onnx")                        # doctest: +SKIP
    >>> [r.class_name for r in scorer.score(["a.jpg"])]      # doctest: +SKIP
    ['cat']
    """

    def __init__(
        self,
        path: str | os.PathLike,
        providers: str | Sequence[str | tuple[str, dict[str, Any]]] | None = None,
        alpha: float | None = None,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        :param path: a file written by ``isomax export``
        :param providers: one or several of ONNX Runtime's execution providers, most wanted first;
            the CPU's if not given
        :param alpha: another false-alarm rate than the one the model was exported with
        :param threads: threads of the network and of the decoders each; ONNX Runtime's choice
            and the number of cores if not given
        :param max_pixels: larger images are refused before they are decoded
        :raises ModelError: if the file is not ours, or damaged
        :raises ValueError: if alpha is smaller than what the model was calibrated for, or this ONNX
            Runtime lacks a provider
        """
        self.path = os.fsdecode(path)
        wanted = [providers] if isinstance(providers, str) else providers
        wanted = list(wanted or ["CPUExecutionProvider"])
        available = onnxruntime.get_available_providers()
        for provider in wanted:  # ONNX Runtime would only warn, and take another
            name = provider if isinstance(provider, str) else provider[0]
            if name not in available:
                raise ValueError(
                    f"this ONNX Runtime has no {name!r}; it has {', '.join(available)}"
                )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        if threads is not None:
            options.intra_op_num_threads = threads
        self.threads = threads or os.cpu_count() or 1
        self.max_pixels = max_pixels
        if not os.path.isfile(path):
            raise ModelError(f"there is no file {self.path}")
        try:
            if refers_to_other_files(Path(self.path)):
                raise ModelError(
                    f"{self.path} refers to data in other files, which isomax never writes; it "
                    "was not loaded"
                )
        except (ValueError, OSError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{self.path} is not an ONNX model: {error}") from error
        try:
            # not by its name, which ONNX Runtime wants in UTF-8
            self.session = onnxruntime.InferenceSession(
                Path(self.path).read_bytes(), options, providers=wanted
            )
        except Exception as error:  # ONNX Runtime has a class of its own for each status
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{self.path} is not an ONNX model that can be run: {reason}"
            ) from error
        self.metadata = self._read_metadata()
        self.class_names: list[str] = self.metadata["class_names"]
        self.threshold = float(self.metadata["threshold"])
        self.alpha = float(self.metadata["alpha"])
        if alpha is not None:
            self.threshold = self._threshold_for(alpha)
            self.alpha = alpha

    def at(self, alpha: float) -> "Scorer":
        """The same model with the threshold of another false-alarm rate.

        :param alpha: share of known images that may be rejected, in (0, 1)
        :raises ValueError: if alpha is smaller than what the model was calibrated for
        """
        other = copy.copy(self)  # the network is shared
        other.threshold, other.alpha = self._threshold_for(alpha), alpha
        return other

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's outputs for images of one size.

        :param images: uint8 ``[N, H, W, 3]``, RGB
        :return: ``label``, ``confidence``, ``score``, ``is_ood``, ``logits``, ``probabilities``
        :raises ValueError: if the array is something else
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}; expected uint8 [N, H, W, 3], "
                "RGB"
            )
        if 0 in images.shape:
            raise ValueError(f"images have shape {images.shape}; expected no empty dimension")
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, {"images": images}), strict=True))
        # not "score > threshold", which accepts NaN
        outputs["is_ood"] = ~(outputs["score"] <= np.float32(self.threshold))
        return outputs

    def score(self, inputs: Iterable[Input] | Input, batch_size: int = 16) -> list[Result]:
        """Score images, one result per input, in order.

        :param inputs: paths, encoded images (bytes) or uint8 arrays ``[H, W, 3]``; one or many, or
            one array ``[N, H, W, 3]``
        :return: results; an input that cannot be decoded has ``error`` set
        """
        single = isinstance(inputs, (str, bytes, os.PathLike)) or (
            isinstance(inputs, np.ndarray) and inputs.ndim == 3
        )
        return list(self.stream([inputs] if single else inputs, batch_size))  # type: ignore[list-item, arg-type]

    def stream(self, inputs: Iterable[Input], batch_size: int = 16) -> Iterator[Result]:
        """As :meth:`score`, one by one, in memory that does not grow with the number of inputs.

        Threads decode the next images while the network runs; images of the same size share a
        batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        numbered = enumerate(inputs)
        waiting: deque[Future[tuple[str, Any]]] = deque()
        ahead = batch_size
        with ThreadPoolExecutor(self.threads) as pool:
            while True:
                more = max(0, ahead - len(waiting))
                waiting.extend(pool.submit(self._decode, i) for i in islice(numbered, more))
                if not waiting:
                    return
                batch: list[tuple[str, Any]] = []
                pixels = 0
                while waiting and len(batch) < batch_size and pixels < PIXELS_AT_ONCE:
                    batch.append(waiting.popleft().result())
                    pixels += getattr(batch[-1][1], "size", 0) // 3
                # decode while the network runs: as many as there is room for, if like these
                room = PIXELS_AT_ONCE * len(batch) // max(pixels, 1)
                ahead = min(batch_size, max(self.threads, room))
                more = max(0, ahead - len(waiting))
                waiting.extend(pool.submit(self._decode, i) for i in islice(numbered, more))
                yield from self._score_decoded(batch)

    def _score_decoded(self, images: list[tuple[str, Any]]) -> list[Result]:
        results: dict[int, Result] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, (source, image) in enumerate(images):
            if isinstance(image, str):
                results[position] = Result(source, error=image)
            else:
                by_size.setdefault(image.shape, []).append(position)
        for positions in by_size.values():
            outputs = self.run(np.stack([images[p][1] for p in positions]))
            for row, position in enumerate(positions):
                label = int(outputs["label"][row])
                if not 0 <= label < len(self.class_names):
                    raise ModelError(f"{self.path} gave label {label}, which has no class name")
                results[position] = Result(
                    source=images[position][0],
                    label=label,
                    class_name=self.class_names[label],
                    confidence=float(outputs["confidence"][row]),
                    score=float(outputs["score"][row]),
                    is_ood=bool(outputs["is_ood"][row]),
                )
        return [results[position] for position in range(len(images))]

    def _decode(self, item: tuple[int, Input]) -> tuple[str, np.ndarray | str]:
        """The image as an array, or the reason why there is none."""
        number, source = item
        if isinstance(source, np.ndarray):
            name = f"array {number}"
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2:] != (3,):
                return name, f"{source.dtype} of shape {source.shape}, not uint8 [H, W, 3]"
            return name, source if source.size else "an array without pixels"
        name = f"input {number}"
        try:
            if isinstance(source, (bytes, bytearray, memoryview)):
                name = f"bytes {number}"
                file: Any = io.BytesIO(source)
            else:
                name = file = os.fsdecode(source)
                if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would never end
                    return name, "not a regular file"
            with Image.open(file) as image:
                width, height = image.size
                if width * height > self.max_pixels:
                    return name, f"{width}x{height} pixels, more than {self.max_pixels} allowed"
                return name, np.asarray(as_rgb(image))
        except Exception as error:  # Pillow's decoders raise whatever they please
            reason = str(error)
            if isinstance(source, (bytes, bytearray, memoryview)):
                reason = reason.replace(repr(file), "the bytes")  # without its address in memory
            return name, f"{type(error).__name__}: {reason}"

    def _read_metadata(self) -> dict[str, Any]:
        """The metadata, if this is a file of ours.

        :raises ModelError: if anything that scoring relies on is missing or wrong
        """
        inputs = [(i.name, i.type, i.shape) for i in self.session.get_inputs()]
        outputs = {o.name: o.type for o in self.session.get_outputs()}
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        ours = len(inputs) == 1 and inputs[0][:2] == ("images", "tensor(uint8)")
        ours = (
            ours
            and inputs[0][2][3:] == [3]
            and not any(isinstance(side, int) for side in inputs[0][2][:3])
        )
        if text is None or not ours or outputs != OUTPUTS:
            raise ModelError(
                f"{self.path} was not exported by isomax (no {METADATA_KEY!r} metadata, or other "
                "inputs and outputs); export a model folder with 'isomax export'"
            )
        logits = next(o for o in self.session.get_outputs() if o.name == "logits")
        try:
            metadata: dict[str, Any] = json.loads(text)
            _check_metadata(metadata, logits.shape[1])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ModelError(f"the metadata of {self.path} is damaged: {error!r}") from error
        return metadata

    def _threshold_for(self, alpha: float) -> float:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}; expected a fraction in (0, 1)")
        curve = [(rate, value) for rate, value in self.metadata["curve"] if rate <= alpha + 1e-12]
        if not curve:
            raise ValueError(
                f"alpha={alpha} takes more held-out samples than the {self.metadata['samples']} "
                f"this model was calibrated on; the least is {self.metadata['curve'][0][0]:.4g}"
            )
        return float(curve[-1][1])


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, in training and in scoring alike.

    16-bit grey is scaled to 8 bits (Pillow's own conversion clips it to white).

    :raises ValueError: if the values have no known range (32-bit integers, floats)
    """
    if image.mode.startswith("I;16"):
        shifted = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(shifted.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode} have no known range; save the image with 8 or 16 bits"
        )
    return image.convert("RGB")


def _check_metadata(metadata: dict[str, Any], classes: object) -> None:
    if metadata["format"] != METADATA_FORMAT:
        raise ValueError(f"format {metadata['format']!r}, this version reads {METADATA_FORMAT}")
    names, curve = metadata["class_names"], metadata["curve"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is not a list of strings")
    if len(names) != classes:
        raise ValueError(f"{len(names)} class names for {classes} classes")
    "".join(names).encode()  # lone surrogates cannot be printed
    numbers = [metadata["threshold"], metadata["alpha"], metadata["samples"]]
    if not isinstance(curve, list) or not curve:
        raise ValueError("curve is not a list of points")
    for rate, threshold in curve:
        numbers += [rate, threshold]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError("a threshold or rate is not a finite number")
    if [rate for rate, _ in curve] != sorted(rate for rate, _ in curve):
        raise ValueError("the rates of the curve are not in order")


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Files as given, and the image files in folders, recursively, sorted within each folder."""
    for path in paths:
        if not os.path.isdir(path):
            yield os.fspath(path)
            continue
        errors: list[OSError] = []
        for folder, subfolders, files in os.walk(os.fspath(path), onerror=errors.append):
            subfolders.sort()
            for file in sorted(files):
                if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                    yield str(Path(folder) / file)
        # a folder that cannot be read becomes a row with an error
        yield from (str(error.filename) for error in errors)
