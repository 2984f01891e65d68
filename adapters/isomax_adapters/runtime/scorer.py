"""Score images with an exported model: numpy, ONNX Runtime and Pillow, no PyTorch."""

import copy
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isomax_adapters.runtime import inputs as reading
from isomax_adapters.runtime.decoding import MAX_PIXELS, Decoding
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.runtime.inputs import Input
from isomax_adapters.runtime.metadata import METADATA_KEY, OUTPUTS, check_metadata, resized
from isomax_adapters.runtime.p_values import Steps, at_most
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.runtime.room import Room
from isomax_adapters.runtime.safety import refers_to_other_files
from isomax_adapters.runtime.sessions import Provider, ProviderError, cores, open_session

PIXELS_AT_ONCE = 32_000_000  # decoded and waiting, and as many in one batch; 100 MB each
LONGEST_PATH = 4096


class ModelError(InputError):
    """A file that is not a model exported by isomax, or one that is damaged."""


@dataclass(frozen=True)
class Result:
    """What the model says of one image; with ``error`` set it says nothing."""

    source: str  #: the path, or a name for what came without one
    label: int = -1
    class_name: str = ""
    confidence: float = float("nan")  #: calibrated probability of the label
    score: float = float("nan")  #: outlier score; larger means more likely OOD
    #: conformal: of known images, a share of at most alpha has one of at most alpha, for any alpha
    p_value: float = float("nan")
    is_ood: bool = True  #: whether the p-value is at most alpha
    error: str = ""
    #: name and calibrated probability of as many classes as asked for, the most probable first
    top: tuple[tuple[str, float], ...] = ()


class Scorer:
    """An exported model, ready to score.

    >>> scorer = Scorer("model.onnx")                        # doctest: +SKIP
    >>> [r.class_name for r in scorer.score(["a.jpg"])]      # doctest: +SKIP
    ['cat']
    """

    def __init__(
        self,
        path: str | os.PathLike,
        providers: str | Sequence[Provider] | None = None,
        alpha: float | None = None,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        :param path: a file written by ``isomax export``
        :param providers: one or several of ONNX Runtime's execution providers, most wanted first;
            the CPU's if not given
        :param alpha: another false-alarm rate than the one the model was exported with
        :param threads: threads of the network and of the decoders each; as many as this process
            may use if not given
        :param max_pixels: larger images are refused before they are decoded
        :raises ModelError: if the file is not ours, or damaged
        :raises InputError: if alpha is smaller than what the model was calibrated for, a provider
            cannot be used here, or a number is below 1
        """
        if isinstance(path, (bytes, bytearray, memoryview)) and len(path) > LONGEST_PATH:
            raise ModelError(
                f"the model is {len(path)} bytes; expected the path of a file: write them to one"
            )
        for name, value in (("threads", threads), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.path = os.fsdecode(path)
        self.threads = threads or cores()
        self.max_pixels = max_pixels
        self._asked = (providers, threads)
        content = self._open()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.metadata = self._read_metadata()
        self.class_names: list[str] = self.metadata["class_names"]
        config = self.metadata["preprocessing"]
        self.channels: int = config["input_size"][0]
        self.decoding = Decoding(self.channels).with_options(config)
        self.steps = Steps.of(self.metadata)
        self.alpha = float(self.metadata["alpha"] if alpha is None else alpha)
        self.threshold = self._threshold_for(self.alpha)  #: the score above which is_ood is true

    def _open(self) -> bytes:
        """The session on the file, whose content it gives back.

        :raises ModelError: if it is no model that can be run
        :raises ProviderError: if a provider cannot be used here
        """
        if os.path.isdir(self.path):
            raise ModelError(f"{self.path} is a folder; isomax export makes a file of a model")
        if not os.path.isfile(self.path):
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
        # not by its name, which ONNX Runtime wants in UTF-8
        content = Path(self.path).read_bytes()
        try:
            self.session = open_session(content, *self._asked)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime has a class of its own for each status
            raise ModelError(
                f"{self.path} is not an ONNX model that can be run: {_first_line(error)}"
            ) from error
        return content

    def __getstate__(self) -> dict[str, Any]:
        """Without the network, which whoever gets it opens again from the same file."""
        return {name: value for name, value in vars(self).items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if hashlib.sha256(self._open()).hexdigest() != self.sha256:
            raise ModelError(f"{self.path} is another file than the one that was sent")

    def at(self, alpha: float) -> "Scorer":
        """The same model with the threshold of another false-alarm rate.

        :param alpha: share of known images that may be rejected, in (0, 1)
        :raises InputError: if alpha is smaller than what the model was calibrated for
        """
        other = copy.copy(self)  # the network is shared
        other.threshold, other.alpha = self._threshold_for(alpha), float(alpha)
        return other

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's outputs for images of one size.

        :param images: uint8 ``[N, H, W, C]``: RGB, or of as many channels as the model has
        :return: ``label``, ``confidence``, ``score``, ``is_ood``, ``logits``, ``probabilities``,
            ``p_value``
        :raises ValueError: if the array is something else, or too thin for the model
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != self.channels:
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}; expected uint8 "
                f"[N, H, W, {self.channels}]"
            )
        if 0 in images.shape:
            raise ValueError(f"images have shape {images.shape}; expected no empty dimension")
        if reason := self._too_thin(*images.shape[1:3]):
            raise ValueError(reason)
        found = self.session.run(list(OUTPUTS), {"images": images})
        outputs = dict(zip(OUTPUTS, found, strict=True))
        return outputs | {"is_ood": at_most(outputs["p_value"], self.alpha)}

    def score(
        self, inputs: Iterable[Input] | Input, batch_size: int = 16, top: int = 0
    ) -> list[Result]:
        """Score images, one result per input, in order.

        :param inputs: paths, encoded images (bytes, or files opened in binary mode), PIL images,
            or uint8 arrays ``[H, W]``, ``[H, W, 1]`` (grey), ``[H, W, 3]`` (RGB) or ``[H, W, 4]``
            (with alpha, or the fourth band of a model of four channels); one or many, or one array
            ``[N, H, W, C]``
        :param top: of how many classes to give the probability; of all, if there are fewer
        :return: results; an input that cannot be decoded or scored has ``error`` set
        :raises TypeError: if it is neither an image nor an iterable of them
        """
        several: Any = [inputs] if reading.is_one(inputs) else inputs
        return list(self.stream(several, batch_size, top))

    def stream(
        self, inputs: Iterable[Input], batch_size: int = 16, top: int = 0
    ) -> Iterator[Result]:
        """As :meth:`score`, one by one, in memory that does not grow with the number of inputs.

        Threads decode the next images while the network runs, ``PIXELS_AT_ONCE`` ahead at most; a
        larger image is decoded alone. They also make it the size that the graph would, with the
        Pillow that timm's transform has, so that images of all sizes share a batch. If ``inputs``
        raises, what it gave before is scored first.
        """
        reading.check_several(inputs)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        if top < 0:
            raise InputError(f"top is {top}; expected a number of classes")
        numbered = enumerate(inputs)
        waiting: deque[tuple[int, Future[tuple[str, Any]]]] = deque()
        failure: Exception | None = None
        room = Room(PIXELS_AT_ONCE)
        pool = ThreadPoolExecutor(self.threads)

        def look_ahead() -> None:
            nonlocal failure
            while len(waiting) < batch_size and failure is None:
                try:
                    number, source = next(numbered)
                except StopIteration:
                    return
                except Exception as error:
                    failure = error
                    return
                waiting.append((number, pool.submit(self._decode, number, source, room)))
                # arrays are in memory already: not more than there is room for, if all are alike
                size = source.size if isinstance(source, np.ndarray) else 0
                if size * len(waiting) > 3 * PIXELS_AT_ONCE:
                    return

        try:
            while True:
                look_ahead()
                batch: list[tuple[str, Any]] = []
                pixels = 0
                while waiting and len(batch) < batch_size:
                    number, future = waiting[0]
                    decoded = future.result()
                    pixels += room.held_by(number)
                    if batch and pixels > PIXELS_AT_ONCE:
                        break
                    batch.append(decoded)
                    waiting.popleft()
                    room.leave(number)
                if not batch:
                    break
                look_ahead()  # decoded while the network runs
                yield from self._score_decoded(batch, top)
        finally:
            room.close()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    def _score_decoded(self, images: list[tuple[str, Any]], top: int) -> list[Result]:
        results = {
            position: Result(source, error=image)
            for position, (source, image) in enumerate(images)
            if isinstance(image, str)
        }
        there = [position for position in range(len(images)) if position not in results]
        if there:
            scored = self._score_same_size([images[position] for position in there], top)
            results.update(zip(there, scored, strict=True))
        return [results[position] for position in range(len(images))]

    def _score_same_size(self, images: list[tuple[str, np.ndarray]], top: int) -> list[Result]:
        pixels = [image for _, image in images]
        try:
            outputs = self.run(pixels[0][None] if len(pixels) == 1 else np.stack(pixels))
        except Exception as error:  # such as too little memory
            if len(images) > 1:  # one may be to blame
                return [self._score_same_size([image], top)[0] for image in images]
            return [Result(images[0][0], error=f"{type(error).__name__}: {_first_line(error)}")]
        for name, (_, rank) in OUTPUTS.items():  # a graph may break its promises
            if outputs[name].shape[:1] != (len(images),) or outputs[name].ndim != rank:
                raise ModelError(
                    f"{self.path} gave {name!r} of shape {outputs[name].shape} for {len(images)} "
                    "images"
                )
        return [
            self._result(source, {name: value[row] for name, value in outputs.items()}, top)
            for row, (source, _) in enumerate(images)
        ]

    def _result(self, source: str, row: dict[str, np.ndarray], top: int) -> Result:
        for name in ("logits", "score", "confidence"):  # other numbers follow from these
            if not np.isfinite(row[name]).all():
                kind = "NaN" if np.isnan(row[name]).any() else "infinite numbers"
                return Result(source, error=f"the network gave {kind} as {name}; it is rejected")
        label = int(row["label"])
        if not 0 <= label < len(self.class_names):
            raise ModelError(f"{self.path} gave label {label}, which has no class name")
        return Result(
            source=source,
            label=label,
            class_name=self.class_names[label],
            confidence=float(row["confidence"]),
            score=float(row["score"]),
            p_value=float(row["p_value"]),
            is_ood=bool(row["is_ood"]),
            top=self._top(row["logits"], row["probabilities"], top),
        )

    def _top(
        self, logits: np.ndarray, probabilities: np.ndarray, count: int
    ) -> tuple[tuple[str, float], ...]:
        # by the logits: probabilities can be the same where these are not
        order = np.argsort(-logits, kind="stable")[:count] if count else ()
        return tuple((self.class_names[at], float(probabilities[at])) for at in order)

    def _decode(self, number: int, source: Any, room: Room) -> tuple[str, np.ndarray | str]:
        """The image as the graph crops it, or the reason why there is none; takes its turn for
        room."""
        config = self.metadata["preprocessing"]
        name = reading.name_of(number, source)

        def enter(height: int, width: int) -> None:
            if reason := self._too_thin(height, width):
                raise reading.UnusableError(reason)
            room.enter(number, self._cost(height, width))

        try:
            image = reading.read(source, self.decoding, self.max_pixels, enter)
            made = to_size_of_graph(image, config)
            room.shrink(number, made.shape[0] * made.shape[1])
        except Exception as error:  # Pillow's decoders raise whatever they please
            return name, reading.why(error, source)
        else:
            return name, made
        finally:
            room.enter(number, 0)  # if it has not been there

    def _too_thin(self, height: int, width: int) -> str:
        """Why the model cannot resize an image of this size, if so."""
        new_height, new_width = resized(self.metadata["preprocessing"], height, width)
        if min(new_height, new_width) > 0 and new_height * new_width <= MAX_PIXELS:
            return ""
        return f"{width}x{height} is too thin: the model would make it {new_width}x{new_height}"

    def _cost(self, height: int, width: int) -> int:
        """The pixels of an image in memory, as it is and once the model has resized it."""
        new_height, new_width = resized(self.metadata["preprocessing"], height, width)
        return max(height * width, new_height * new_width)

    def _read_metadata(self) -> dict[str, Any]:
        """The metadata, if this is a file of ours.

        :raises ModelError: if anything that scoring relies on is missing or wrong
        """
        try:
            inputs = [(i.name, i.type, i.shape) for i in self.session.get_inputs()]
            outputs = {o.name: (o.type, len(o.shape)) for o in self.session.get_outputs()}
            text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path} is damaged: {error}") from error
        ours = len(inputs) == 1 and inputs[0][:2] == ("images", "tensor(uint8)")
        sides = inputs[0][2] if ours else []
        ours = ours and len(sides) == 4 and not any(isinstance(side, int) for side in sides[:3])
        if text is None or not ours or outputs != OUTPUTS:
            raise ModelError(
                f"{self.path} was not exported by isomax (no {METADATA_KEY!r} metadata, or other "
                "inputs and outputs); export a model folder with 'isomax export'"
            )
        logits = next(o for o in self.session.get_outputs() if o.name == "logits")
        try:
            metadata: dict[str, Any] = json.loads(text)
            check_metadata(metadata, logits.shape[1])
            if metadata["preprocessing"]["input_size"][0] != sides[3]:
                raise ValueError(f"input_size is not that of {sides[3]} channels")
        except Exception as error:  # JSON can hold anything
            raise ModelError(f"the metadata of {self.path} is damaged: {error!r}") from error
        return metadata

    def _threshold_for(self, alpha: float) -> float:
        if not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha}; expected a fraction in (0, 1)")
        threshold = self.steps.threshold(alpha)
        if threshold is None:
            raise InputError(
                f"alpha={alpha} takes more held-out samples than the {self.metadata['samples']} "
                f"this model was calibrated on; the least is {self.steps.values[0]:.4g}; for a "
                "smaller one calibrate on more images"
            )
        return threshold


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
