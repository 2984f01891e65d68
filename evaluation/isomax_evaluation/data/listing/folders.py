"""A folder of images as splits and classes."""

import os
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from isomax_evaluation.data.listing.files import (
    IMAGE_SUFFIXES,
    MET_BEFORE,
    expanded,
    identity,
    reason_against_file,
    reason_against_folder,
    walk,
)
from isomax_evaluation.data.listing.listing import (
    Entry,
    LeavingOut,
    Listing,
    Scan,
    in_order,
    listings,
    printable,
)
from isomax_evaluation.output.errors import InputError, first_few

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "eval"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}

_FOLD = re.compile("k?(fold|split)[ _-]?[0-9]+", re.IGNORECASE)  # of a cross-validation

_LOOSE = "image in no class folder"
_BESIDE = "folder beside the splits"
_EMPTY = "folder without images"
_UNLABELLED = "split without class folders of images"
_UNMAPPED = "folder that the class map does not name"


def scan(folder: str | os.PathLike[str], class_map: Mapping[str, int] | None = None) -> Scan:
    """The labelled images of a folder.

    The class of an image is the first folder below the split, or below the given folder if that
    has no splits. Splits are its subfolders of the names in ``SPLITS``, in any case. Beside other
    folders with images, a single one that holds images, and no subfolders of them, is a class
    (vehicles have one called ``train``); ``train`` and another one are splits, and what is beside
    them is left out. A ``val`` or ``test`` without class folders is left out too.

    :param class_map: the position of each class, as :func:`load_class_map` gives it; folders that
        it does not name are left out
    :raises InputError: if no image has a class; ``val`` or ``test`` has one that ``train`` has not;
        a split or a class is there twice; splits lie below classes, or cannot be told from them; or
        a folder cannot be listed
    """
    root = expanded(folder)
    if not os.path.isdir(root):
        raise InputError(f"there is no folder {root}")
    beside = LeavingOut()
    splits = _split_folders(root, beside)
    if not splits:
        splits, beside = {"all": ""}, LeavingOut()
    left_out = {split: LeavingOut() for split in splits}
    classes = _class_folders(root, splits, class_map, left_out)
    _refuse_splits_as_classes(root, classes)
    found = _images(root, splits, classes, left_out)
    for split in [split for split, images in found.items() if not images]:
        if split in ("all", "train") or len(found) == 1:
            way_out = "put each class into a folder of its own, or give the labels as a CSV file"
            if not left_out[split].has(_LOOSE):
                way_out = f"files that are read end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            if class_map and left_out[split].has(_UNMAPPED):
                way_out = f"the class map names {first_few(list(class_map), 3)}: give that of these"
            raise InputError(
                f"{os.path.join(root, splits[split])} has no images in class folders"
                f"{left_out[split]}; {way_out}"
            )
        beside.add(_UNLABELLED, splits[split] + "/")
        del found[split]
    return Scan(listings(root, found, class_map, left_out), beside.listed())


def scan_unlabelled(folder: str | os.PathLike[str]) -> Listing:
    """The images of a folder to test on, such as an out-of-distribution set.

    All images of the ``test`` split; of ``val`` if that is not there; of the folder if neither is.
    Their labels are -1.

    :raises InputError: if there are none, a folder cannot be listed, or it cannot be told whether
        its subfolders are splits
    """
    root = expanded(folder)
    if not os.path.isdir(root):
        raise InputError(f"there is no folder {root}")
    left_out = LeavingOut()
    splits = _split_folders(root, LeavingOut())
    top = os.path.join(root, splits.get("test", splits.get("val", "")))
    walked = walk(
        [(None, top)],
        set(),
        _refuse_unlisted,
        lambda _, reason, path: left_out.add(reason, _relative(path, root)),
    )
    names = sorted((_relative(path, root) for _, path in walked), key=lambda name: name.split("/"))
    if not names:
        raise InputError(f"{top} has no images{left_out}")
    return Listing(root, tuple(names), np.full(len(names), -1), (), left_out=left_out.listed())


def _split_folders(root: str, beside: LeavingOut) -> dict[str, str]:
    """The folder of each split; none if the folders are classes."""
    folders, files = _list(root)
    named = _named_splits(root)
    flat = [name for name in named if not _images_below(root, name)]
    others = []
    for name in folders if named else ():
        if reason := reason_against_folder(name):
            beside.add(reason, name + "/")
        elif name not in named and not _images_below(root, name) and not _images_in(root, name):
            beside.add(_EMPTY, name + "/")
        elif name not in named:
            others.append(name)
    if others and len(named) == len(flat) == 1:
        return {}
    splits: dict[str, str] = {}
    first: dict[object, str] = {}
    for name in named:
        _refuse_twice(root, name, first)
        split = SPLIT_OF[name.lower()]
        if other := splits.get(split):
            raise InputError(f"{root} has {other}/ and {name}/, both the {split} split; keep one")
        splits[split] = name
    if others and splits and ("train" not in splits or len(splits) == 1 or splits["train"] in flat):
        raise InputError(
            f"{root} has {_few(named)} beside {_few(others)}: splits, or classes? Keep splits and "
            "nothing else in one folder, and in each a folder for every class"
        )
    for name in others:
        beside.add(_BESIDE, name + "/")
    for name in files:
        beside.add(reason_against_file(name) or _LOOSE, name)
    return {split: splits[split] for split in SPLITS if split in splits}


def _class_folders(
    root: str,
    splits: Mapping[str, str],
    class_map: Mapping[str, int] | None,
    left_out: Mapping[str, LeavingOut],
) -> dict[str, dict[str, str]]:
    """Of each split, the folder of each class, relative to the root."""
    above = _identities(root, splits)
    first: dict[object, str] = {}
    classes: dict[str, dict[str, str]] = {split: {} for split in splits}
    for split, parent in splits.items():
        folders, files = _list(os.path.join(root, parent))
        for name in files:
            left_out[split].add(reason_against_file(name) or _LOOSE, _join(parent, name))
        for name in in_order(folders):
            path = _join(parent, name)
            # UTF-8, whatever the locale takes the names of files for
            text = os.fsencode(name).decode("utf-8", "surrogateescape")
            label = unicodedata.normalize("NFC", text)
            if reason := reason_against_folder(name):
                left_out[split].add(reason, path + "/")
            elif identity(os.path.join(root, path)) in above:
                left_out[split].add(MET_BEFORE, path + "/")
            elif class_map is not None and label not in class_map:
                left_out[split].add(_UNMAPPED, path + "/")
            elif not _is_text(label):
                raise InputError(f"{root} has a class {os.fsencode(path)!r}, which is no text")
            elif other := classes[split].get(label):
                raise InputError(
                    f"{root} has {other!r} and {path!r}, the same name to the eye, with accents "
                    "that Unicode writes in two ways; keep one"
                )
            else:
                _refuse_twice(root, path, first)
                classes[split][label] = path
    return classes


def _images(
    root: str,
    splits: Mapping[str, str],
    classes: Mapping[str, Mapping[str, str]],
    left_out: Mapping[str, LeavingOut],
) -> dict[str, list[Entry]]:
    """Of each split, all images, their names relative to the root."""
    tops = [
        ((split, label), os.path.join(root, path))
        for split, folders in classes.items()
        for label, path in folders.items()
    ]
    images: dict[str, list[Entry]] = {split: [] for split in splits}
    filled = set()
    for (split, label), path in walk(
        tops,
        _identities(root, splits),
        _refuse_unlisted,
        lambda key, reason, path: left_out[key[0]].add(reason, _relative(path, root)),
    ):
        images[split].append(Entry(label, _relative(path, root)))
        filled.add((split, label))
    for split, label in [key for key, _ in tops if key not in filled]:
        left_out[split].add(_EMPTY, classes[split][label] + "/")
    return images


def _images_in(root: str, name: str) -> bool:
    return not all(map(reason_against_file, _list(os.path.join(root, name))[1]))


def _images_below(root: str, name: str) -> bool:
    """Whether the subfolders of a folder hold images."""
    folder = os.path.join(root, name)
    below = [
        (None, os.path.join(folder, f)) for f in _list(folder)[0] if not reason_against_folder(f)
    ]
    above = {identity(root), identity(folder)}
    return next(walk(below, above, _refuse_unlisted, lambda *_: None), None) is not None


def _refuse_splits_as_classes(root: str, classes: Mapping[str, Mapping[str, str]]) -> None:
    """Where splits are called or lie otherwise, they would be taken for classes."""
    for split, folders in classes.items():
        paths = list(folders.values())
        called = [splits for path in paths if (splits := _splits_in(os.path.basename(path)))]
        if split != "all":
            why = "the name of a split" if len(paths) == len(called) == 1 else ""
        elif paths and all(_named_splits(os.path.join(root, path)) for path in paths):
            why = f"{_few(_named_splits(os.path.join(root, paths[0])))} in them"
        elif len(paths) > 1 and all(map(_FOLD.fullmatch, paths)):
            why = "the names of folds"
        elif len(set().union(*called)) > 1 and 2 * len(called) > len(paths):
            why = "the names of splits"
        else:
            why = ""
        if why:
            raise InputError(
                f"{_few(paths)} in {root} would be classes, and have {why}; call the folders of "
                "splits train/, val/ and test/, and keep in each a folder for every class"
            )


def _named_splits(folder: str) -> list[str]:
    return [name for name in _list(folder)[0] if name.lower() in SPLIT_OF]


def _splits_in(name: str) -> set[str]:
    """The splits that a name speaks of: of ``seg_train`` and ``training_set``, that is train."""
    return {SPLIT_OF[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLIT_OF}


def _refuse_twice(root: str, path: str, first: dict[object, str]) -> None:
    other = first.setdefault(identity(os.path.join(root, path)), path)
    if other != path:
        raise InputError(
            f"{other}/ and {path}/ in {root} are one folder, by way of a link: its images would be "
            "there twice; keep one"
        )


def _refuse_unlisted(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of folders and of files, sorted."""
    _, folders, files = next(os.walk(folder, onerror=_refuse_unlisted))
    return sorted(folders), sorted(files)


def _identities(root: str, splits: Mapping[str, str]) -> set[object]:
    return {identity(os.path.join(root, name)) for name in ("", *splits.values())}


def _is_text(name: str) -> bool:
    return name.isascii() or name == name.encode("utf-8", "replace").decode("utf-8")


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip(os.sep).replace(os.sep, "/")


def _few(names: list[str]) -> str:
    shown = ", ".join(f"{printable(name)}/" for name in names[:3])
    return shown + f" and {len(names) - 3} more" * (len(names) > 3)
