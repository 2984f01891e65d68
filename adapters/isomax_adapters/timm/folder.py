"""The model folder: ``model.safetensors`` and ``config.json`` as timm's ``local-dir:`` source reads
them, ``calibration.json``, and in ``calibration.safetensors`` the model's outputs behind it."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from isomax.calibration import Calibration
from isomax_adapters.runtime.decoding import RGB, Decoding
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.checkpoints import CheckpointError, load_weights, read_checkpoint
from isomax_adapters.timm.classes import checked_names

WEIGHTS, CONFIG, CALIBRATION = "model.safetensors", "config.json", "calibration.json"
CALIBRATED_ON = "calibration.safetensors"  #: what the model made of the calibration images


class ModelFolderError(InputError):
    """A folder that is not a model folder, or one that is damaged; says what is wrong."""


def save_model(
    model: nn.Module,
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    decoding: Decoding | None = None,
    also: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Write a model folder, whole or not at all.

    It is written beside its place and moved there when complete: a full disk or a kill leaves an
    older folder as it was.

    :param model: a timm model, with or without one of our heads
    :param folder: where; replaced if it is a model folder already
    :param class_names: label names, in the order of the logits
    :param data_config: preprocessing, as ``timm.data.resolve_model_data_config`` gives it, where
        it differs from the model's own
    :param calibration: temperature and threshold
    :param decoding: how images are read for it, if not as the folder says that the model was loaded
        from
    :param also: writes what else belongs into the folder, before that appears
    :return: the folder
    :raises ModelFolderError: if something else is there already
    :raises ValueError: if the class names are not one for each of the model's classes
    """
    folder = Path(os.path.realpath(folder))  # where a symbolic link leads
    check_place(folder)
    classes: Any = model.num_classes
    names = None if class_names is None else checked_names(class_names, classes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    decoding = decoding or getattr(model, "decoding", None) or RGB
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        # safetensors refuses tensors that share memory, as tied weights do, or are channels-last
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        write_tensors(tensors, new / WEIGHTS)
        save_config_for_hf(
            model,
            str(new / CONFIG),
            model_config={
                **({"label_names": names} if names else {}),
                **decoding.options,
            },
            data_config=data_config,
        )
        if calibration is not None:
            save_calibration(calibration, new)
        also(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def check_place(folder: Path) -> None:
    """Refuse a place that no model folder can be written to, before the work that it is to hold.

    :raises ModelFolderError: if something else is there already
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file()):
        raise ModelFolderError(f"{folder} exists and is not a model folder; choose another place")


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, which whoever may read the folder can read.

    :raises OSError: if the disk is full, and the like
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)  # safetensors leaves it to its owner alone
    except SafetensorError as error:
        number = re.search(r"(?:os error|Os \{ code:) (\d+)", str(error))  # as older ones say it
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_model(folder: str | Path) -> nn.Module:
    """The model of a model folder, in evaluation mode, on the CPU.

    Nothing is unpickled: weights come from ``model.safetensors`` only. The class names are in
    ``model.pretrained_cfg["label_names"]``; how images are read for it is ``model.decoding``.

    :raises ModelFolderError: if the folder is none, or damaged
    """
    folder = Path(folder)
    config = _read_json(folder, CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise ModelFolderError(f"{folder} has no {WEIGHTS}; it is not a model folder")
    architecture = config.get("architecture")
    if not timm.is_model(str(architecture)):
        raise ModelFolderError(
            f"{folder / CONFIG} names the architecture {architecture!r}, which timm does not have"
        )
    try:
        model: Any = timm.create_model(f"local-dir:{folder}")
        channels = timm.data.resolve_model_data_config(model)["input_size"][0]
        decoding = Decoding(channels).with_options(config)
    except InputError as error:
        raise ModelFolderError(f"{folder / CONFIG}: {error}") from error
    except Exception as error:  # JSON can hold anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelFolderError(f"{folder / CONFIG} makes no model: {reason}") from error
    names = config.get("label_names") or []
    if isinstance(names, list) and len(names) not in (0, model.num_classes):
        raise ModelFolderError(
            f"{folder / CONFIG} has {len(names)} label_names for {model.num_classes} classes; "
            "correct them, or save the model again"
        )
    try:
        load_weights(model, read_checkpoint(folder / WEIGHTS))
    except CheckpointError as error:
        raise ModelFolderError(str(error)) from error
    model.decoding = decoding
    network: nn.Module = model.eval()
    return network


def save_calibration(calibration: Calibration, folder: str | Path) -> None:
    """Write ``calibration.json`` into a model folder, and the outputs behind it beside it."""
    folder = Path(folder)
    write_tensors(dict(calibration.outputs), folder / f".{CALIBRATED_ON}.partial")
    target = folder / CALIBRATION
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(calibration.to_dict(), indent=1), encoding="utf-8")
    (folder / f".{CALIBRATED_ON}.partial").replace(folder / CALIBRATED_ON)
    partial.replace(target)


def load_calibration(folder: str | Path) -> Calibration | None:
    """The calibration of a model folder; ``None`` if it has not been calibrated.

    :raises ModelFolderError: if a file is damaged, or the two are not of the same images
    """
    folder = Path(folder)
    if not (folder / CALIBRATION).is_file():
        return None
    content = _read_json(folder, CALIBRATION)
    try:
        outputs = load_file(folder / CALIBRATED_ON)
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{folder / CALIBRATED_ON} cannot be read: {error}") from error
    try:
        return Calibration.from_dict(content, outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(f"{folder / CALIBRATION} is damaged: {error}") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise ModelFolderError(f"there is no folder {folder}")
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {name}; it is not a model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} is damaged: it holds no JSON object")
    return content
