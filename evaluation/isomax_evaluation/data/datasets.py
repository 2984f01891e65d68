"""Data sets by name or folder.

- a folder, which wins over a name: one subfolder per class, below ``train``, ``val`` and ``test``
  (in any case; ``valid``, ``validation``, ``testing`` and the like will do) or not; images lie
  anywhere below their class
- a table, ``labels.csv``, with path and label of each image; columns split and group are optional
- ``digits`` (1,797 handwritten digits that ship with scikit-learn), ``gaussian-noise`` and
  ``uniform-noise`` (pytorch-ood's)
- pytorch-ood's OOD data sets (``Textures``), torchvision's (``CIFAR10``, ``SVHN``), and every name
  that ``timm.data.create_dataset`` knows (``torch/cifar10``, ``hfds/...``)
"""

import inspect
import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_ood.dataset.img
import timm.data
import torchvision.datasets
from PIL import Image
from pytorch_ood.dataset.img import GaussianNoise, UniformNoise

from isomax_adapters.runtime.decoding import open_image
from isomax_evaluation.data.images import OOD_LABEL, Images, stratified_split
from isomax_evaluation.data.listing.files import existing_folder
from isomax_evaluation.data.listing.folders import SPLITS, scan, scan_unlabelled
from isomax_evaluation.data.listing.listing import Listing, Scan
from isomax_evaluation.data.listing.tables import load_class_map, read_labels
from isomax_evaluation.data.parts import hold_out
from isomax_evaluation.data.torch_datasets import from_dataset, labels_of
from isomax_evaluation.output.errors import InputError, first_few, input_errors, one_line
from isomax_evaluation.output.files import as_text

DIGITS_KNOWN, DIGITS_HELD_OUT = tuple("0123456"), tuple("789")
NOISE = {"gaussian-noise": GaussianNoise, "uniform-noise": UniformNoise}
TABLES = (".csv", ".tsv", ".txt")
TEST_SHARE = 0.2  # of a data set that is not split
#: torchvision's with videos, pairs, flows, boxes or attributes instead
WITHOUT_A_CLASS = (
    *("FlyingChairs", "FlyingThings3D", "HD1K", "KittiFlow", "Sintel"),
    *("ETH3DStereo", "InStereo2k", "Kitti2012Stereo", "Kitti2015Stereo", "Middlebury2014Stereo"),
    *("HMDB51", "Kinetics", "MovingMNIST", "UCF101", "LFWPairs", "PhotoTour"),
    *("CelebA", "Cityscapes", "Kitti", "WIDERFace"),
)


@dataclass(frozen=True)
class Splits:
    """The parts of an in-distribution data set."""

    train: Images
    test: Images
    #: the validation set that there is beside a test set; none of it is trained on
    held_out: Images | None = None
    #: whether the test images were drawn here, from a set without any
    drawn: bool = False
    #: what was read and what was left out, a line for each split; empty of named sets
    found: tuple[str, ...] = ()


def open_splits(
    name: str, root: str | None = None, group_by: str | None = None, class_map: str | None = None
) -> Splits:
    """Training and test images of an in-distribution dataset.

    Of ``val`` and ``test``, one alone is the test set; with both, ``val`` is held out. A set
    without either is split four to one by class, and by group, always the same way.

    :param name: as this module's docstring says; ``digits`` means its known classes
    :param root: folder that named datasets are read from
    :param group_by: which images belong together (of one patient, camera, day), so that no split
        parts them: a column of the table, or how many characters of the file names are the same
    :param class_map: timm's file of class names, in their order
    :raises InputError: if there is no such dataset, or it has fewer than two classes
    """
    is_table = name.lower().endswith(TABLES) and Path(os.path.expanduser(name)).is_file()
    if is_table or existing_folder(name):
        splits = _open_files(name, is_table, group_by, class_map)
    elif group_by or class_map:
        raise InputError(
            f"{name} is no folder or table of images; groups and a class map are for those"
        )
    elif name == "digits":
        train, test = stratified_split(_digits(DIGITS_KNOWN), TEST_SHARE, seed=0)
        splits = Splits(train, test)
    else:
        splits = Splits(open_images(name, "train", root), open_images(name, "test", root))
    train, test = splits.train, splits.test
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
    return splits


def open_images(name: str, split: str = "test", root: str | None = None) -> Images:
    """The images of one split, to test on: their labels say nothing.

    :param name: as this module's docstring says; ``digits-held-out`` are the classes that
        ``digits`` leaves out
    :param split: ``train`` or ``test``; a dataset without splits gives all its images
    :param root: folder that named datasets are read from
    :raises InputError: if there is no such dataset
    """
    folder = existing_folder(name)
    if folder is not None:
        return _unlabelled(folder, split)
    if name == "digits":
        parts = open_splits(name)
        return parts.train if split == "train" else parts.test
    if name == "digits-held-out":
        return _digits(DIGITS_HELD_OUT, name)
    if name in NOISE:
        return _noise(name)
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


def named_sets() -> dict[str, str]:
    """The data sets that are known by name, and whose each is."""
    ours = dict.fromkeys(("digits", "digits-held-out"), "scikit-learn, offline")
    ours |= dict.fromkeys(NOISE, "pytorch-ood, offline")
    for module, wanted, whose in (
        (torchvision.datasets, {"train", "split"}, "torchvision"),
        (pytorch_ood.dataset.img, {"root"}, "pytorch-ood"),
    ):
        for name in sorted(module.__all__):
            has = wanted & set(inspect.signature(getattr(module, name)).parameters)
            if has and name not in WITHOUT_A_CLASS:
                ours[name] = whose
    return ours | {"torch/..., hfds/..., tfds/...": "timm"}


def _open_files(name: str, is_table: bool, group_by: str | None, class_map: str | None) -> Splits:
    try:
        classes = None if class_map is None else load_class_map(class_map)
        prefix = int(group_by) if group_by is not None and group_by.isdecimal() else None
        if is_table:
            found = read_labels(name, classes, group_by if prefix is None else None)
        elif group_by is not None and prefix is None:
            raise InputError(
                f"images in folders have no column {group_by!r} to group by; give the number of "
                "characters that file names of one group begin with, or a table of labels"
            )
        else:
            found = scan(name, classes)
        if prefix is not None:
            splits = {key: part.grouped_by_prefix(prefix) for key, part in found.splits.items()}
            found = Scan(splits, found.left_out)
        _check_groups(found)
        return _splits_of(found, _name_of(name))
    except OSError as error:
        raise InputError(str(error)) from error


def _check_groups(found: Scan) -> None:
    """No group is in two of the splits that were given."""
    for (name, split), (other_name, other) in combinations(found.splits.items(), 2):
        if shared := sorted(set(split.groups or ()) & set(other.groups or ())):
            raise InputError(
                f"{len(shared)} groups are in both {name} and {other_name}: "
                f"{first_few(shared, 5)}; keep the images of a group in one split, or do not group"
            )


def _splits_of(found: Scan, name: str) -> Splits:
    lines = tuple(str(found).splitlines())
    train, test, held_out = found.train, found.test, found.held_out
    if train is None or (test is not None and train is test):
        only = next(iter(found.splits))
        raise InputError(
            f"{name} has {only}/ and no train/; put the images to train on into train/, or all "
            "classes straight into the folder"
        )
    if test is None:
        with input_errors():  # of too few images
            chosen = hold_out(train.names, train.labels, TEST_SHARE, train.groups)
        rest = np.setdiff1d(np.arange(len(train)), chosen)
        train, test = train.take(rest), train.take(chosen)
        lines += (
            f"test: {len(test):,} of these, drawn by class" + " and group" * bool(test.groups),
        )
    return Splits(
        _images_of(train, name),
        _images_of(test, name),
        None if held_out is None else _images_of(held_out, name),
        drawn=found.test is None,
        found=lines,
    )


def _name_of(folder: str) -> str:
    """The last part of its path, as text: it becomes a name in tables. Of a set's training part it
    is the set's."""
    place = Path(os.path.expanduser(folder)).resolve()
    return as_text(place.parent.name if place.name.lower() in SPLITS["train"] else place.name)


def _images_of(listing: Listing, name: str) -> Images:
    groups = None if listing.groups is None else np.array(listing.groups)
    paths = listing.paths
    return Images(
        name, _Files(paths), listing.labels, listing.class_names, np.arange(len(listing)), paths,
        groups=groups, names=listing.names,
    )  # fmt: skip


def _unlabelled(folder: str, split: str) -> Images:
    try:
        top = folder
        if split == "train":  # to choose hyperparameters on: not the images that others test on
            inside = [name for name in os.listdir(folder) if name.lower() in SPLITS["train"]]
            top = os.path.join(folder, inside[0]) if len(inside) == 1 else folder
        listing = scan_unlabelled(top)
    except OSError as error:
        raise InputError(str(error)) from error
    # the folders that images lie in are most often classes
    inside = [name.rpartition("/")[0].rpartition("/")[2] for name in listing.names]
    names = tuple(sorted(set(inside)))
    labels = np.array([names.index(one) for one in inside])
    paths = listing.paths
    return Images(
        _name_of(folder), _Files(paths), labels, names, np.arange(len(paths)), paths,
        names=listing.names, found=str(listing),
    )  # fmt: skip


class _Files:
    """Image files; unlike timm's own dataset it never puts another image in a bad one's place."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        with open_image(self.paths[index]) as image:
            image.load()
            return image, None


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
    if name in WITHOUT_A_CLASS:
        raise InputError(f"torchvision's {name} has no class for each image; give another dataset")
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
