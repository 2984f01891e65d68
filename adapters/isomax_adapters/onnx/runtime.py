"""Score images with an exported model: numpy, ONNX Runtime and Pillow, no PyTorch.

Images are taken as they are stored: an EXIF orientation is not applied, as in training.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

METADATA_KEY = "isomax"
MAX_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}

Input = str | os.PathLike | bytes | np.ndarray


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
        providers: Sequence[str] | None = None,
        alpha: float | None = None,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        :param path: a file written by ``isomax export``
        :param providers: ONNX Runtime execution providers; the CPU's if not given
        :param alpha: another false-alarm rate than the one the model was exported with
        :param threads: threads of the network and of the decoders each; ONNX Runtime's choice
            and the number of cores if not given
        :param max_pixels: larger images are refused before they are decoded
        :raises ModelError: if the file is not ours, or damaged
        :raises ValueError: if alpha is smaller than what the model was calibrated for
        """
        self.path = str(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self.threads = threads or os.cpu_count() or 1
        self.max_pixels = max_pixels
        if not Path(path).is_file():
            raise ModelError(f"there is no file {self.path}")
        try:
            self.session = onnxruntime.InferenceSession(
                self.path, options, providers=providers or ["CPUExecutionProvider"]
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
        numbered = enumerate(inputs)
        with ThreadPoolExecutor(self.threads) as pool:
            window = [pool.submit(self._decode, item) for item in islice(numbered, 2 * batch_size)]
            while window:
                ready, window = window[:batch_size], window[batch_size:]
                window += [pool.submit(self._decode, i) for i in islice(numbered, batch_size)]
                yield from self._score_decoded(ready)

    def _score_decoded(self, decoded: list["Future[tuple[str, Any]]"]) -> list[Result]:
        results: dict[int, Result] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        images = [future.result() for future in decoded]
        for position, (source, image) in enumerate(images):
            if isinstance(image, str):
                results[position] = Result(source, error=image)
            else:
                by_size.setdefault(image.shape, []).append(position)
        for positions in by_size.values():
            outputs = self.run(np.stack([images[p][1] for p in positions]))
            for row, position in enumerate(positions):
                label = int(outputs["label"][row])
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
        name = f"bytes {number}" if isinstance(source, bytes) else os.fspath(source)
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file) as image:
                width, height = image.size
                if width * height > self.max_pixels:
                    return name, f"{width}x{height} pixels, more than {self.max_pixels} allowed"
                return name, np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise whatever they please
            return name, f"{type(error).__name__}: {error}"

    def _read_metadata(self) -> dict[str, Any]:
        inputs = [(i.name, i.type) for i in self.session.get_inputs()]
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None or inputs != [("images", "tensor(uint8)")]:
            raise ModelError(
                f"{self.path} was not exported by isomax (no {METADATA_KEY!r} metadata, or another "
                "input than uint8 images); export a model folder with 'isomax export'"
            )
        try:
            metadata: dict[str, Any] = json.loads(text)
            classes = self.session.get_outputs()[4].shape[1]
            if len(metadata["class_names"]) != classes:
                raise ValueError(f"{len(metadata['class_names'])} names for {classes} classes")
            float(metadata["threshold"]), float(metadata["alpha"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
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


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Files as given, and the image files in folders, recursively, sorted within each folder."""
    for path in paths:
        if not Path(path).is_dir():
            yield os.fspath(path)
            continue
        for folder, subfolders, files in os.walk(os.fspath(path)):
            subfolders.sort()
            for file in sorted(files):
                if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                    yield str(Path(folder) / file)
