"""Models from where users have them: folders, timm's names, the hub, checkpoint files."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from isomax_adapters.timm.folder import CONFIG, load_model
from isomax_adapters.timm.importing import model_from_checkpoint
from isomax_adapters.timm.registry import SourceError, built_for_one_size, create_model


def open_model(source: str, image_size: int | None = None) -> nn.Module:
    """A trained model, in evaluation mode, on the CPU. Nothing is unpickled.

    :param source: a model folder; an output folder of ``isomax train``; a timm name, with or
        without a tag (``resnet50.a1_in1k``), for its pretrained weights; ``local-dir:FOLDER`` or
        ``hf-hub:REPOSITORY``; or a timm name with a checkpoint (``resnet50@weights.safetensors``)
    :param image_size: for architectures that are built for one size, such as vision transformers
    :raises SourceError: if there is no such model, or its weights cannot be had
    :raises ModelFolderError: if a folder is no model folder, or damaged
    :raises CheckpointError: if a checkpoint cannot be read, or is of another architecture
    """
    folder = model_folder_of(source)
    if folder is not None:
        return load_model(folder)
    architecture, at, file = source.partition("@")
    if at:
        return model_from_checkpoint(Path(os.path.expanduser(file)), architecture)
    if Path(os.path.expanduser(source)).exists():
        raise SourceError(
            f"{source} holds no model: expected config.json and model.safetensors, in it or in its "
            "subfolder model; a checkpoint file goes with its architecture, resnet50@FILE"
        )
    kwargs: dict[str, Any] = {}
    if image_size and built_for_one_size(source):
        kwargs["img_size"] = image_size
    return create_model(source, pretrained=True, **kwargs).eval()


def model_folder_of(source: str) -> Path | None:
    """The model folder that a source is, or holds as ``isomax train`` does; ``None`` if neither."""
    place = Path(os.path.expanduser(source.removeprefix("local-dir:")))
    for folder in (place, place / "model"):
        if (folder / CONFIG).is_file():
            return folder
    return None


def models_in(folder: str) -> list[Path]:
    """The subfolders of a folder that are models, or hold one; sorted by name."""
    place = Path(os.path.expanduser(folder))
    if not place.is_dir():
        return []
    return [sub for sub in sorted(place.iterdir()) if model_folder_of(str(sub)) is not None]
