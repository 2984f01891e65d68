"""Which files are images, and which folders are looked into: the same in training and in scoring.

- Images are told by their endings, in any case.
- Names that begin with ``.``, ``@`` or ``__`` are skipped: checkpoints, thumbnails, ``._x.png``.
- Links to folders are followed, after all else; a folder that is reached twice is read once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# all that Pillow's readers of IMAGE_FORMATS register, but .pfm: floats, most often depth maps
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
# pictures all the same, which whoever left them there will miss
OTHER_SUFFIXES = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".ico", ".psd", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr", ".pfm", ".tga", ".pcx", ".eps"),
}
SYSTEM = "name that begins with '.', '@' or '__'"
MET_BEFORE = "folder met before, by way of a link"

Tag = TypeVar("Tag")


def find_images(
    paths: Iterable[str | os.PathLike[str]],
    leave_out: Callable[[str, str], object] = lambda reason, path: None,
) -> Iterator[str]:
    """Files as given, and the image files in folders, recursively, sorted within each folder.

    A folder that cannot be listed is given too, so that whoever opens it finds out why. ``~`` is
    the home folder, unless there is a file of that name.

    :param leave_out: called with reason and path of what is not taken, as it is met
    """
    for path in map(expanded, paths):
        if not os.path.isdir(path):
            yield path
            continue
        unlisted: list[OSError] = []
        for _, image in walk(
            [(None, path)], set(), unlisted.append, lambda _, why, left: leave_out(why, left)
        ):
            yield image
        yield from (str(error.filename) for error in unlisted)


def existing_folder(name: str) -> str | None:
    """The folder of this name, if there is one: it goes before a dataset's name."""
    path = expanded(name)
    return path if os.path.isdir(path) else None


def expanded(path: str | os.PathLike[str]) -> str:
    """``~`` as the home folder; a shell leaves it alone in ``--data=~/photos``."""
    path = os.fspath(path)
    return path if os.path.lexists(path) else os.path.expanduser(path)


def walk(
    tops: Iterable[tuple[Tag, str]],
    visited: set[object],
    unlisted: Callable[[OSError], object],
    leave_out: Callable[[Tag, str, str], object],
) -> Iterator[tuple[Tag, str]]:
    """The image files below some folders, each with the tag of its folder, as they are found.

    :param visited: :func:`identity` of folders that are not to be entered; those that are, and the
        given ones before any of them is, join them
    :param unlisted: called with what went wrong where a folder cannot be listed
    :param leave_out: called with tag, reason and path of what is not taken; folders end in a slash
    """
    waiting = deque(tops)
    visited.update(identity(top) for _, top in waiting)
    links: deque[tuple[Tag, str]] = deque()
    while waiting:
        tag, top = waiting.popleft()
        for folder, subfolders, files in os.walk(top, onerror=unlisted):
            entered = []
            for name in sorted(subfolders):
                path = os.path.join(folder, name)
                if reason := reason_against_folder(name):
                    leave_out(tag, reason, path + os.sep)
                elif os.path.islink(path):
                    links.append((tag, path))
                elif _enter(path, visited):
                    entered.append(name)
                else:
                    leave_out(tag, MET_BEFORE, path + os.sep)
            subfolders[:] = entered
            for name in sorted(files):
                path = os.path.join(folder, name)
                if reason := reason_against_file(name):
                    leave_out(tag, reason, path)
                else:
                    yield tag, path
        while links and not waiting:
            tag, path = links.popleft()
            if _enter(path, visited):
                waiting.append((tag, path))
            else:
                leave_out(tag, MET_BEFORE, path + os.sep)


def reason_against_folder(name: str) -> str:
    """Why a folder of this name is not looked into; empty if it is."""
    return SYSTEM if name.startswith((".", "@", "__")) else ""


def reason_against_file(name: str) -> str:
    """Why a file of this name is not taken for an image; empty if it is."""
    if reason := reason_against_folder(name):
        return reason
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_SUFFIXES:
        return ""
    if ending in OTHER_SUFFIXES:
        return f"file ending in {ending}, to be saved as PNG or JPEG"
    return f"file ending in {ending}" if ending.strip(".0123456789") else "file without an ending"


def identity(folder: str) -> object:
    """The same for all paths that lead to one folder."""
    try:
        status = os.stat(folder)
    except OSError:  # it has just vanished
        return folder
    return status.st_dev, status.st_ino


def _enter(folder: str, visited: set[object]) -> bool:
    known = identity(folder)
    if known in visited:
        return False
    visited.add(known)
    return True
