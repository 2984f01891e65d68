"""Data sets and loaders of PyTorch's, as images with labels."""

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_ood.dataset.img.noise import NoiseDataset
from torch.utils import data as torch_data

from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError


def from_dataset(
    dataset: Any, name: str, labels: np.ndarray, class_names: tuple[str, ...]
) -> Images:
    """The images of a ``torch.utils.data.Dataset``: PIL images as they are, or finished tensors.

    :raises InputError: if it is empty, or its items are neither
    """
    if len(dataset) == 0:
        raise InputError(f"{name} has no images")
    if isinstance(dataset, NoiseDataset):
        # it gives another image at every access
        dataset = [dataset[index] for index in range(len(dataset))]
    first = dataset[0][0]
    if isinstance(first, torch.Tensor):
        check_tensor(first, name)
    elif not isinstance(first, Image.Image):
        raise InputError(
            f"{name} gives {type(first).__name__}, not images: make it with a transform that "
            "returns its argument, since each model brings its own preprocessing"
        )
    return Images(name, dataset, labels, class_names, np.arange(len(dataset)))


def open_torch(given: Any, name: str) -> Images:
    """A data set or loader of (image, label), as images with labels.

    Images are PIL images, which each model preprocesses in its own way, or tensors, which go into
    the model as they are. Class names are the data set's ``classes``, else the labels themselves.

    :param given: a ``Dataset`` with a length, or a ``DataLoader``; a loader that draws, or makes
        its batches in a way of its own, is read into memory, once
    :raises InputError: if it is neither, or has no images
    """
    dataset = _dataset_of(given) if isinstance(given, torch_data.DataLoader) else given
    if not (hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)):
        raise InputError(
            f"{name} is {type(given).__name__}; expected a folder, the name of a dataset, a "
            "torch.utils.data.Dataset with a length, or a DataLoader of (images, labels)"
        )
    _check_pairs(dataset, name)
    labels = labels_of(dataset)
    known = labels[labels >= 0]
    names = getattr(dataset, "classes", None) or range(int(known.max()) + 1 if len(known) else 0)
    return from_dataset(dataset, name, labels, tuple(map(str, names)))


def _check_pairs(dataset: Any, name: str) -> None:
    """
    :raises InputError: if the first item of a data set is no image with its label
    """
    if not len(dataset):
        return
    item = dataset[0]
    pair = isinstance(item, (tuple, list)) and len(item) >= 2
    shown = type(item).__name__
    if isinstance(item, dict):
        shown += f" of {', '.join(map(str, item))}"
    if pair:
        try:
            pair = int(item[1]) == item[1]
        except (TypeError, ValueError, RuntimeError):  # of a tensor of several numbers
            pair = False
        shown = f"an image with the label {item[1]!r}"
    if not pair:
        raise InputError(
            f"{name} gives {' '.join(shown.split())}; expected (image, label) with a whole number "
            "as label: wrap it in a Dataset that returns these"
        )


def check_tensor(image: torch.Tensor, name: str) -> None:
    """
    :raises InputError: if no network takes an image such as this
    """
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    if image.dtype not in kinds or image.ndim != 3:
        raise InputError(
            f"{name} gives tensors of {str(image.dtype).removeprefix('torch.')} and shape "
            f"{list(image.shape)}; expected float32 [C, H, W], normalised as the model takes it: "
            "torchvision's v2.ToDtype(torch.float32, scale=True) and v2.Normalize, or PIL images, "
            "which are prepared here"
        )


def _dataset_of(loader: torch_data.DataLoader) -> Any:
    plain = (torch_data.SequentialSampler, torch_data.RandomSampler)
    if isinstance(loader.sampler, plain) and (
        loader.collate_fn is torch_data.default_collate and not loader.drop_last
    ):
        return loader.dataset
    return [
        (image, int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]


def labels_of(dataset: Any) -> np.ndarray:
    """Labels of a dataset of (image, label), without decoding its images where it lists them."""
    if isinstance(dataset, torch_data.ConcatDataset):
        return np.concatenate([labels_of(part) for part in dataset.datasets])
    if isinstance(dataset, torch_data.Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices)]
    changed = getattr(dataset, "target_transform", None) is not None
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name) and not changed:
            return np.asarray(getattr(dataset, name), dtype=int)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))])
