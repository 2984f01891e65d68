"""Fitted detectors as part of a model folder: tensors in safetensors, the rest JSON.

What a detector is given by the model (encoder, classifier) is not written: it is built of the model
again, and what fitting has made is put back.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_ood.api import Detector
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isomax_adapters.pytorch_ood.detectors import detectors_for
from isomax_adapters.pytorch_ood.digests import digests_of_weights
from isomax_adapters.pytorch_ood.entries import wiring_of
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm import ModelFolderError, load_model
from isomax_adapters.timm.folder import write_tensors

DETECTOR, STATE = "detector.json", "detector.safetensors"
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Saved:
    """What a model folder says of its detector."""

    name: str  #: one of :data:`NAMES`
    values: dict[str, Any]  #: numbers and texts of its state
    weights: str  #: digest of the model that it was fitted on
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    fit_images: int | None = None  #: how many it was fitted on; ``None`` if it is not fitted
    data: str | None = None  #: digest of these images


def save_detector(detector: Detector, saved: Saved, folder: str | Path) -> None:
    """Write a detector into a model folder, in the place of another one.

    :param saved: what is said of it; its values are the detector's own, whatever they are here
    :raises InputError: if it holds what can be neither written nor built again
    """
    tensors, values = state_of(detector)
    folder = Path(folder)
    content = asdict(saved) | {"values": values}
    for name, write in (
        (STATE, lambda path: write_tensors(tensors, path)),
        (DETECTOR, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8")),
    ):
        partial = folder / f".{name}.partial"
        write(partial)
        partial.replace(folder / name)


def read_detector(folder: str | Path) -> Saved | None:
    """What a model folder says of its detector; ``None`` if it has none.

    :raises ModelFolderError: if that is damaged
    """
    path = Path(folder) / DETECTOR
    if not path.is_file():
        return None
    try:
        return Saved(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from error


def load_detector(folder: str | Path, model: nn.Module | Parts | None = None) -> Detector:
    """The fitted detector of a model folder, on its model; its scores are bit for bit those that it
    had.

    :param model: the folder's model, if it has been loaded
    :raises ModelFolderError: if the folder has no detector, it is damaged, or it was fitted on a
        model of other weights
    """
    folder = Path(folder)
    saved = read_detector(folder)
    if saved is None:
        raise ModelFolderError(f"{folder} has no {DETECTOR}: no detector was fitted for it")
    model = load_model(folder) if model is None else model
    parts = model if isinstance(model, Parts) else Parts(model)
    found = digests_of_weights(parts.model).whole
    if found != saved.weights:
        raise ModelFolderError(
            f"the detector in {folder} was fitted on a model with the digest {saved.weights}, and "
            f"the weights there have {found}; calibrate the model again"
        )
    try:
        tensors = load_file(folder / STATE)
        (detector,) = detectors_for(parts, [saved.name]).values()
        restore(detector, saved.values | tensors)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise ModelFolderError(f"the detector in {folder} is damaged: {error}") from error
    return detector


def state_of(detector: Detector) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What fitting and settings have made of a detector: tensors, and what JSON takes.

    :raises InputError: if it holds what can be neither written nor built again
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in wiring_of(detector).state(detector).items():
        if isinstance(value, Tensor):
            tensors[key] = value.detach().cpu().contiguous()
        elif isinstance(value, (np.ndarray, np.generic)):
            tensors[key] = torch.from_numpy(np.array(value))
        elif _is_plain(value):
            values[key] = value
        elif isinstance(value, Detector):
            inner_tensors, inner_values = state_of(value)
            tensors |= {f"{key}.{name}": tensor for name, tensor in inner_tensors.items()}
            values |= {f"{key}.{name}": plain for name, plain in inner_values.items()}
        elif not (callable(value) or isinstance(value, (nn.Module, torch.device))):
            raise InputError(
                f"a {type(value).__name__} in {key} cannot be written into a model folder; choose "
                "another detector, or score in Python with this one"
            )
    return tensors, values


def _is_plain(value: Any) -> bool:
    """Whether it comes back from JSON as it was, a tuple as a list."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def restore(detector: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`state_of` took."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if isinstance(vars(detector).get(first), Detector):
            nested.setdefault(first, {})[rest] = value
        else:
            own[key] = value
    wiring_of(detector).restore(detector, own)
    for first, inner in nested.items():
        restore(vars(detector)[first], inner)
    if detector.device is not None:
        detector.to(detector.device)
