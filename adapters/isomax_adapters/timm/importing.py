"""Models from the checkpoints of training scripts, timm's ``train.py`` first of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import resolve_model_input_args
from torch import nn

from isomax_adapters.timm.checkpoints import (
    CheckpointError,
    load_weights,
    number_of_classes,
    read_checkpoint,
)
from isomax_adapters.timm.folder import check_place, save_model
from isomax_adapters.timm.registry import check_name


def model_from_checkpoint(
    path: str | Path, architecture: str | None = None, use_ema: bool = True, **kwargs: Any
) -> nn.Module:
    """The model whose weights a file holds, in evaluation mode, on the CPU.

    Number of classes: that of the checkpoint's classifier. Input size and channels, pooling, other
    arguments of the model and the preprocessing: those that the training script was run with,
    where the file says so, else the architecture's; ``timm.data.resolve_model_data_config`` gives
    the preprocessing.

    :param path: what :func:`~isomax_adapters.timm.checkpoints.read_checkpoint` reads
    :param architecture: a name that timm has; that in the file if not given
    :param use_ema: prefer the moving average of the weights, where there is one
    :param kwargs: arguments of ``timm.create_model`` that come before those in the file
    :raises CheckpointError: if the file cannot be read, names no architecture, or does not fit
    :raises InputError: if timm does not have the architecture
    """
    checkpoint = read_checkpoint(path, use_ema)
    args = checkpoint.args
    name = architecture or checkpoint.architecture
    if name is None:
        raise CheckpointError(f"{path} does not say of which architecture it is; name it")
    check_name(name)
    how: dict[str, Any] = {"global_pool": args.get("gp"), **(args.get("model_kwargs") or {})}
    how = resolve_model_input_args(name, args, **(how | kwargs))
    if "num_classes" not in kwargs:
        with torch.device("meta"):
            blank = timm.create_model(**how)
        if (classes := number_of_classes(checkpoint, blank)) is not None:
            how["num_classes"] = classes
    model = timm.create_model(**how)
    load_weights(model, checkpoint)
    config = timm.data.resolve_input_data_config(model, args)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **config}
    return model.eval()


def folder_from_checkpoint(
    path: str | Path,
    folder: str | Path,
    architecture: str | None = None,
    class_names: Sequence[str] | None = None,
    use_ema: bool = True,
    **kwargs: Any,
) -> Path:
    """Write the model folder of a checkpoint, such as ``model_best.pth.tar`` of timm's
    ``train.py``: something to calibrate, compare and export.

    :param folder: where, as in :func:`~isomax_adapters.timm.save_model`
    :param class_names: label names, in the order of the logits: of torchvision's ``ImageFolder``
        the sorted names of the subfolders, of timm's readers those in natural order. If not given,
        the folder has none, and whoever opens it with labelled images finds the order by these
    :return: the folder; the other parameters and errors are those of
        :func:`model_from_checkpoint` and :func:`~isomax_adapters.timm.save_model`
    """
    check_place(Path(folder))
    model = model_from_checkpoint(path, architecture, use_ema, **kwargs)
    return save_model(
        model, folder, class_names, data_config=timm.data.resolve_model_data_config(model)
    )
