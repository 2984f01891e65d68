"""What a model makes of a set of images, kept on disk under what it depends on."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from isomax.moments import Statistics
from isomax_adapters.pytorch_ood import Digests
from isomax_evaluation.output.cache import key_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import write_json

ARRAYS = {"logits": np.float32, "features": np.float32, "labels": np.int64}


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a set of images, in order, on the CPU."""

    logits: Tensor  #: :math:`N \times C`
    features: Tensor  #: :math:`N \times D`
    labels: Tensor  #: :math:`N`; OOD < 0

    @cached_property
    def statistics(self) -> Statistics:
        """Of the features; what several detectors are fitted on is found once."""
        return Statistics(self.features, self.labels)


def together(*several: Outputs) -> Outputs:
    """Of one set after the other, in memory."""
    return Outputs(
        torch.cat([outputs.logits for outputs in several]),
        torch.cat([outputs.features for outputs in several]),
        torch.cat([outputs.labels for outputs in several]),
    )


class Keeper(Protocol):
    """Where outputs go during a pass, and where they are found again."""

    def read(self) -> Outputs | None:
        """What is kept; ``None`` if no pass has come to its end."""

    def __enter__(self) -> "Keeper":
        """Begin a pass."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it; what an error has interrupted is not kept."""

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        """Those of the next batch."""


class OutputsInMemory:
    """Outputs of batches, put together at the end."""

    def __init__(self) -> None:
        self._parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        self._whole: Outputs | None = None

    def read(self) -> Outputs | None:
        return self._whole

    def __enter__(self) -> "OutputsInMemory":
        self._parts = ([], [], [])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._whole = Outputs(*(torch.cat(part) for part in self._parts))

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        for part, tensor in zip(
            self._parts, (logits.float(), features.float(), labels), strict=True
        ):
            part.append(tensor.cpu())


class OutputsOnDisk:
    """Outputs as ``logits.npy``, ``features.npy`` (float32) and ``labels.npy`` in a folder, whole
    or not there; read as memory maps."""

    def __init__(self, folder: Path, about: Mapping[str, Any], count: int) -> None:
        """
        :param folder: from :func:`place`
        :param about: what the outputs depend on, for whoever looks into the folder
        :param count: number of images
        """
        self.folder, self.count = folder, count
        self.about = dict(about)
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._files: dict[str, BinaryIO] = {}
        self._written = 0

    def read(self) -> Outputs | None:
        """
        :raises InputError: if the folder is there and damaged
        """
        if not self.folder.is_dir():
            return None
        try:
            arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
            if {len(array) for array in arrays.values()} != {self.count}:
                raise ValueError("another number of images")
        except (OSError, ValueError) as error:
            raise InputError(
                f"the kept outputs in {self.folder} are damaged ({error}); delete that folder, and "
                "they are computed again"
            ) from error
        return Outputs(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def __enter__(self) -> "OutputsOnDisk":
        shutil.rmtree(self._partial, ignore_errors=True)  # of a killed run
        self._partial.mkdir(parents=True)
        self._written = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
        if kind is None:
            assert self._written == self.count, (self._written, self.count)
            write_json(self._partial / "about.json", self.about)
            self._partial.replace(self.folder)
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        """
        :raises InputError: if the disk is full
        """
        self._written += len(labels)
        try:
            for (name, dtype), tensor in zip(
                ARRAYS.items(), (logits, features, labels), strict=True
            ):
                array = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=dtype)
                # not through a memory map: a full disk would end the process
                self._file(name, array).write(array.tobytes())
        except OSError as error:
            raise InputError(
                f"could not keep the model's outputs in {self.folder.parent}: {error}; make room "
                "and run the same command again"
            ) from error

    def _file(self, name: str, first: np.ndarray) -> BinaryIO:
        if name not in self._files:
            file = self._files[name] = (self._partial / f"{name}.npy").open("wb")
            header = np.lib.format.header_data_from_array_1_0(first)
            header["shape"] = (self.count, *first.shape[1:])
            np.lib.format.write_array_header_1_0(file, header)
        return self._files[name]


def keeper(
    store: Path, weights: Digests, preprocessing: Any, images: str, count: int
) -> OutputsOnDisk:
    """The place of one model's outputs on one set of images.

    :param store: folder of all outputs
    :param weights: what tells the model from others
    :param preprocessing: what is done to an image before the model sees it
    :param images: digest of the images, in their order
    :param count: their number
    """
    about = {
        "weights": weights.whole,
        "backbone": weights.backbone,  # without it, features may be of another layer
        "preprocessing": repr(preprocessing),
        "images": images,
        "dtype": "float32",
    }
    return OutputsOnDisk(store / key_of(about), about, count)
