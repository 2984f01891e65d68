"""Data sets and loaders of PyTorch's, as images with labels."""

from collections.abc import Iterator, Sized
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_ood.dataset.img.noise import NoiseDataset
from torch.utils import data as torch_data

from isomax_evaluation.data.images import OOD_LABEL, Images
from isomax_evaluation.data.listing.listing import in_order
from isomax_evaluation.output.errors import InputError

SAMPLE = 32  #: items that a list of labels is checked on


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


def open_torch(given: Any, name: str, labelled: bool = True) -> Images:
    """A data set or loader of (image, label), as images with labels.

    Images are PIL images, which each model preprocesses in its own way, or tensors, which go into
    the model as they are. Labels and class names are those of :func:`labels_of`.

    :param given: a ``Dataset`` with a length, or a ``DataLoader``; a loader that draws, or makes
        its batches in a way of its own, is read into memory, once
    :param labelled: whether the labels say anything; those of OOD sets do not
    :raises InputError: if it is neither, has no images, or labels that are none
    """
    dataset = _dataset_of(given) if isinstance(given, torch_data.DataLoader) else given
    _check_indexable(dataset, name, given)
    _check_pairs(dataset, name)
    if labelled:
        return from_dataset(dataset, name, *labels_of(dataset, name))
    return from_dataset(
        dataset, name, np.full(len(dataset), OOD_LABEL), _names(getattr(dataset, "classes", ()))
    )


def labels_of(
    dataset: Any, name: str, listed: Any = None, classes: Any = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of a data set of (image, label), and the names of its classes.

    What its items return counts. Where it lists its labels, as ``targets`` or ``labels``, and the
    list agrees with a sample of the items, its images are not decoded for them. Labels are numbers,
    one-hot vectors, or names: these are numbered as in the data set's ``classes``, or in natural
    order. Classes without names have their numbers.

    :param listed: the labels, if the data set lists them elsewhere
    :param classes: names of the classes, if not those of the data set's ``classes``
    :raises InputError: if a label is nothing of these
    """
    _check_indexable(dataset, name, dataset)
    raw = next((one for one in _lists(dataset, listed) if _agrees(one, dataset)), None)
    if raw is None:
        raw = [_label_in(dataset[index], name, index) for index in range(len(dataset))]
    labels = [_plain(label) for label in raw]
    names = _names(getattr(dataset, "classes", None) if classes is None else classes)
    if odd := [at for at, label in enumerate(labels) if label is None]:
        raise InputError(
            f"{name}: the label of image {odd[0]} is {_shown(raw[odd[0]])}; expected a number, the "
            "name of a class, or a one-hot vector"
        )
    if named := {label for label in labels if isinstance(label, str)}:
        if len(named) < len(set(labels)) and (numbers := set(labels) - named):
            raise InputError(
                f"{name} has labels that are names, such as {min(named)!r}, and labels that are "
                f"numbers, such as {numbers.pop()!r}; give one or the other"
            )
        names = names if named <= set(names) else tuple(in_order(map(str, named)))
        places = {one: at for at, one in enumerate(names)}
        return np.array([places[str(label)] for label in labels]), names
    found = np.array(labels, dtype=int)
    largest = int(found.max()) if len(found) else -1
    if names and largest >= len(names):
        raise InputError(
            f"{name} has a label {largest}, and names of {len(names)} classes ({names[0]}, ...); "
            "labels go from 0, those of OOD images are below it"
        )
    return found, names or tuple(map(str, range(largest + 1)))


def _check_indexable(dataset: Any, name: str, given: Any) -> None:
    if not (hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)):
        raise InputError(
            f"{name} is {type(given).__name__}; expected a folder, the name of a dataset, a "
            "torch.utils.data.Dataset with a length, or a DataLoader of (images, labels)"
        )


def _check_pairs(dataset: Any, name: str) -> None:
    """
    :raises InputError: if the first item of a data set is no pair
    """
    item = dataset[0] if len(dataset) else ((), ())
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return
    shown = type(item).__name__
    if isinstance(item, dict):
        shown += f" of {', '.join(map(str, item))}"
    raise InputError(
        f"{name} gives {shown}; expected (image, label): wrap it in a Dataset that returns these"
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
        (image, label)
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]


def _lists(dataset: Any, listed: Any = None) -> Iterator[Any]:
    """Where a data set may list its labels, none of its images decoded."""
    if listed is not None:
        yield listed
    if isinstance(dataset, torch_data.Subset):
        for labels in _lists(dataset.dataset):
            yield [labels[int(index)] for index in dataset.indices]
    if isinstance(dataset, torch_data.ConcatDataset):
        parts = [next(_lists(part), None) for part in dataset.datasets]
        if all(part is not None for part in parts):
            yield list(chain.from_iterable(parts))  # type: ignore[arg-type]
    if getattr(dataset, "target_transform", None) is None:
        for attribute in ("targets", "labels", "_labels"):
            labels = getattr(dataset, attribute, None)
            if isinstance(labels, (list, tuple, np.ndarray, torch.Tensor)):
                yield labels


def _agrees(labels: Any, dataset: Any) -> bool:
    """Whether a list has the labels of items, spread over the data set."""
    if len(labels) != len(dataset):
        return False
    for index in np.unique(np.linspace(0, len(labels) - 1, min(len(labels), SAMPLE)).astype(int)):
        try:
            item = dataset[int(index)]
        except Exception:  # of an image that cannot be read, which is said where all are read
            continue
        label = _plain(_label_in(item, "", int(index)))
        if label is None or label != _plain(labels[int(index)]):
            return False
    return True


def _label_in(item: Any, name: str, index: int) -> Any:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise InputError(
            f"{name} gives {type(item).__name__} for image {index}; expected (image, label)"
        )
    return item[1]


def _plain(label: Any) -> int | str | None:
    """A label as number or name, of one-hot vectors the place of the one; ``None`` if it is neither
    of them."""
    if isinstance(label, str):
        return label
    try:
        values = np.asarray(label)
    except (TypeError, ValueError, RuntimeError):  # of objects, or tensors on another device
        return None
    if values.dtype.kind not in "biuf" or values.ndim > 1 or values.size == 0:
        return None
    if values.size == 1:
        number = values.item()
        return int(number) if number == int(number) else None
    if (values != 0).sum() == 1 and values.max() == 1:
        return int(values.argmax())
    return None


def _names(classes: Any) -> tuple[str, ...]:
    """Names as text; of classes with several, as ImageNet's, all of them."""
    if not isinstance(classes, (list, tuple, np.ndarray)):
        return ()
    return tuple(
        ", ".join(map(str, one)) if isinstance(one, (tuple, list)) else str(one) for one in classes
    )


def _shown(label: Any) -> str:
    text = " ".join(repr(label).split())
    return f"{text[:60]}{'...' * (len(text) > 60)} ({type(label).__name__})"
