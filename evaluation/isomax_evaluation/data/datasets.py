"""A dataset by name or folder, as images with labels and class names.

Names: ``digits`` (1,797 handwritten digits that ship with scikit-learn), ``gaussian-noise`` and
``uniform-noise`` (pytorch-ood's), a folder with one subfolder per class (with ``train`` and
``test`` or ``val`` above them, or without), pytorch-ood's OOD datasets (``Textures``),
torchvision's (``CIFAR10``, ``SVHN``), and every name that ``timm.data.create_dataset`` knows
(``torch/cifar10``, ``hfds/...``).
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_ood.dataset.img
import timm.data
import torchvision.datasets
from PIL import Image
from pytorch_ood.dataset.img import GaussianNoise, UniformNoise

from isomax_adapters.onnx.images import IMAGE_FORMATS, as_rgb
from isomax_evaluation.data.images import OOD_LABEL, Images, stratified_split
from isomax_evaluation.data.torch_datasets import from_dataset, labels_of
from isomax_evaluation.output.errors import InputError, one_line

DIGITS_KNOWN, DIGITS_HELD_OUT = tuple("0123456"), tuple("789")
NOISE = {"gaussian-noise": GaussianNoise, "uniform-noise": UniformNoise}
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "validation", "eval")}


def open_splits(name: str, root: str | None = None) -> tuple[Images, Images]:
    """Training and test images of an in-distribution dataset.

    A dataset without a split of its own is split four to one, by class, always the same way.

    :param name: as this module's docstring says; ``digits`` means its known classes
    :param root: folder that named datasets are read from
    :raises InputError: if there is no such dataset, or it has fewer than two classes
    """
    if name == "digits":
        return stratified_split(_digits(DIGITS_KNOWN), 0.2, seed=0)
    if Path(name).is_dir() and not _split_folder(Path(name), "train"):
        train, test = stratified_split(_folder(Path(name), Path(name).resolve().name), 0.2, seed=0)
    else:
        train, test = open_images(name, "train", root), open_images(name, "test", root)
    if len(train.class_names) < 2:
        folders = ", ".join(filter(None, train.class_names)) or "no subfolder"
        raise InputError(
            f"{name} has one class ({folders}); a classifier needs at least two, each in a folder "
            "of its own"
        )
    if train.class_names != test.class_names:
        missing = sorted(set(train.class_names) ^ set(test.class_names))
        raise InputError(
            f"the classes of {name} differ between training and test: {', '.join(missing[:10])} "
            "occur in only one of them"
        )
    return train, test


def open_images(name: str, split: str = "test", root: str | None = None) -> Images:
    """The images of one split.

    :param name: as this module's docstring says; ``digits-held-out`` are the classes that
        ``digits`` leaves out
    :param split: ``train`` or ``test``; a dataset without splits gives all its images
    :param root: folder that named datasets are read from
    :raises InputError: if there is no such dataset
    """
    if name == "digits":
        return open_splits(name)[split == "test"]
    if name == "digits-held-out":
        return _digits(DIGITS_HELD_OUT, name)
    if name in NOISE:
        return _noise(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(_split_folder(path, split) or path, path.resolve().name)
    if name in pytorch_ood.dataset.img.__all__:
        return _from_pytorch_ood(name, root)
    if name in torchvision.datasets.__all__:
        return _from_torchvision(name, split, root)
    if "/" in name and not name.startswith(("/", ".", "~")):
        return _named(name, split, root)
    raise InputError(
        f"there is no dataset or folder {name!r}; give a folder with one subfolder per class, "
        "'digits', 'gaussian-noise', 'uniform-noise', one of pytorch-ood's, such as Textures, one "
        "of torchvision's, such as CIFAR10, or a name that timm knows, such as torch/cifar10"
    )


def _digits(classes: tuple[str, ...], name: str = "digits") -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    # at the size of other small images, so that no model needs a resize of its own
    source = [(Image.fromarray(image).resize((32, 32)), None) for image in pixels]
    targets = digits.target.astype(str)
    indices = np.flatnonzero(np.isin(targets, classes))
    labels = np.array([classes.index(target) for target in targets[indices]])
    return Images(name, source, labels, classes, indices)


def _noise(name: str, count: int = 500) -> Images:
    noise = NOISE[name](count, size=(32, 32, 3), seed=0)
    # drawn once: pytorch-ood's noise sets give other images at every access
    made = [(noise[index][0], None) for index in range(count)]
    return Images(name, made, np.full(count, OOD_LABEL), (), np.arange(count))


def _split_folder(folder: Path, split: str) -> Path | None:
    for name in SPLIT_FOLDERS[split]:
        if (folder / name).is_dir():
            return folder / name
    return None


def _folder(folder: Path, name: str) -> Images:
    try:
        source = timm.data.create_dataset("", root=str(folder), search_split=False)
    except RuntimeError as error:
        raise InputError(f"{folder} has no images in its subfolders") from error
    classes = source.reader.class_to_idx
    samples = source.reader.samples
    return Images(
        name,
        _Files([path for path, _ in samples]),
        np.array([label for _, label in samples]),
        tuple(sorted(classes, key=classes.__getitem__)),
        np.arange(len(samples)),
        [path for path, _ in samples],
    )


class _Files:
    """Image files; unlike timm's own dataset it never puts another image in a bad one's place."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        with Image.open(self.paths[index], formats=IMAGE_FORMATS) as image:
            return as_rgb(image), None


def _from_pytorch_ood(name: str, root: str | None) -> Images:
    made = getattr(pytorch_ood.dataset.img, name)
    parameters = inspect.signature(made).parameters
    wanted = [n for n, p in parameters.items() if p.default is p.empty and n != "root"]
    if wanted or "root" not in parameters:
        raise InputError(
            f"{name} takes more than a folder ({', '.join(wanted)}); use another dataset, or "
            "compare in Python with a benchmark of your own that brings it"
        )
    try:
        dataset = made(root=root or ".", **({"download": True} if "download" in parameters else {}))
    except Exception as error:  # of a download: anything
        raise InputError(
            f"cannot open {name} in {root or 'the current folder'}: {one_line(error)}; give the "
            "folder that holds it with --data-root"
        ) from error
    return from_dataset(dataset, name, np.full(len(dataset), OOD_LABEL), ())


def _from_torchvision(name: str, split: str, root: str | None) -> Images:
    made = getattr(torchvision.datasets, name)
    parameters = inspect.signature(made).parameters
    arguments: dict[str, Any] = {"root": root or "."}
    if "train" in parameters:
        arguments["train"] = split == "train"
    elif "split" in parameters:
        arguments["split"] = split
    else:
        raise InputError(f"torchvision's {name} has no splits to train and test on; give a folder")
    if "download" in parameters:
        arguments["download"] = True
    try:
        dataset = made(**arguments)
        labels = labels_of(dataset)
    except Exception as error:  # of a download: anything
        raise InputError(
            f"cannot open {name} in {root or 'the current folder'}: {one_line(error)}; give the "
            "folder that holds it with --data-root"
        ) from error
    names = getattr(dataset, "classes", None) or range(int(labels.max()) + 1)
    return from_dataset(dataset, name, labels, tuple(map(str, names)))


def _named(name: str, split: str, root: str | None) -> Images:
    try:
        source = timm.data.create_dataset(
            name, root=root, split="train" if split == "train" else "validation"
        )
    except (AssertionError, RuntimeError, ValueError, OSError, ImportError) as error:
        where = f"in {root}" if root else "(no data root given)"
        raise InputError(f"cannot open dataset {name!r} {where}: {error}") from error
    reader = getattr(source, "reader", None)
    if reader is not None and hasattr(reader, "dataset"):  # Hugging Face datasets
        labels = np.array(reader.dataset[reader.label_key])
        names = reader.dataset.features[reader.label_key].names
    else:
        labels = np.array(source.targets)
        names = source.classes
    return Images(
        name.rpartition("/")[2], source, labels, tuple(map(str, names)), np.arange(len(labels))
    )
