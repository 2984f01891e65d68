"""Images with labels, and their parts: split, limited, transformed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils import data as torch_data

from isomax_adapters.runtime.decoding import RGB, Decoding
from isomax_evaluation.output.errors import InputError, first_few, one_line

OOD_LABEL = -1


class UnreadableError(InputError):
    """An image that cannot be read; says which, and why."""


@dataclass(frozen=True)
class Images:
    """Images with labels: a dataset, or a part of one."""

    name: str
    source: Any  #: indexable; items are (PIL image or tensor, anything)
    labels: np.ndarray  #: class of each image that ``indices`` names; OOD sets: -1
    class_names: tuple[str, ...]
    indices: np.ndarray  #: which items of the source
    paths: list[str] | None = field(default=None, repr=False)  #: files of the source, if it has any
    #: of the file of each image that ``indices`` names (its pixels, where there is none), once it
    #: has been read
    fingerprints: np.ndarray | None = field(default=None, repr=False)
    #: the same number for images with the same content: of the files, and once they have been read
    #: of the pixels
    contents: np.ndarray | None = field(default=None, repr=False)
    #: of which patient, camera or day each image is that ``indices`` names
    groups: np.ndarray | None = field(default=None, repr=False)
    #: of the source's files, below the data set's folder, wherever that lies
    names: Sequence[str] | None = field(default=None, repr=False)
    decoding: Decoding = RGB
    #: what was read and what was left out, in a line; empty where nothing could be
    found: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Images":
        """The part with these positions."""
        chosen = np.asarray(chosen, dtype=int)
        return replace(
            self,
            labels=self.labels[chosen],
            indices=self.indices[chosen],
            fingerprints=None if self.fingerprints is None else self.fingerprints[chosen],
            contents=None if self.contents is None else self.contents[chosen],
            groups=None if self.groups is None else self.groups[chosen],
        )

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self.source, list)

    def name_of(self, position: int) -> str:
        """The file of an image; its number where there are no files."""
        index = int(self.indices[position])
        return self.paths[index] if self.paths else f"image {index}"

    def key_of(self, position: int) -> str:
        """What tells an image from the others, however the path of the data set is written."""
        return self.names[int(self.indices[position])] if self.names else self.name_of(position)

    def class_of(self, position: int) -> str:
        """The name of an image's class; empty if it is OOD."""
        label = int(self.labels[position])
        return self.class_names[label] if label >= 0 else ""

    def image(self, position: int) -> Any:
        """One image, as its decoding says; as it is where it is a tensor.

        :raises UnreadableError: if it cannot be read
        """
        try:
            image = self.source[int(self.indices[position])][0]
            return self.decoding(image) if isinstance(image, Image.Image) else image
        except Exception as error:  # Pillow's readers raise whatever they please
            name = self.name_of(position)
            raise UnreadableError(f"{name} cannot be read: {one_line(error)}") from error

    def decoded(self, decoding: Decoding) -> "Images":
        """The same images, decoded in another way."""
        return replace(self, decoding=decoding)

    def as_ood(self) -> "Images":
        """The same images labelled as out-of-distribution."""
        return replace(self, labels=np.full(len(self), OOD_LABEL), class_names=())


class Transformed(torch_data.Dataset):
    """Images under a transform, as a ``torch.utils.data.Dataset`` of (tensor, label)."""

    def __init__(self, images: Images, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images.image(position)), int(self.images.labels[position])


def of_classes(images: Images, classes: Sequence[str]) -> Images:
    """The same images, their labels places among these classes: by name.

    :raises InputError: if some are of another class, or of none
    """
    named = images.class_names
    if strange := [one for one in named if one not in classes] or ["no classes"] * (not named):
        raise InputError(
            f"{images.name} has {first_few(strange, 3)}, not among the known classes: "
            f"{first_few(classes, 5)}"
        )
    places = np.array([classes.index(one) for one in named])
    labels = np.where(images.labels < 0, images.labels, places[images.labels])
    return replace(images, labels=labels, class_names=tuple(classes))


def limit_per_class(images: Images, limit: int | None, seed: int = 0) -> Images:
    """At most ``limit`` images of each class, drawn at random, in the original order.

    :raises InputError: if that is none
    """
    if limit is None:
        return images
    if limit < 1:
        raise InputError(f"at most {limit} images per class is none; give at least 1")
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(images.labels == label) for label in np.unique(images.labels)]
    return images.take(np.sort(np.concatenate([generator.permutation(g)[:limit] for g in groups])))


def at_most(images: Images, limit: int | None) -> Images:
    """At most ``limit`` images, drawn at random, in the original order.

    :raises InputError: if that is none
    """
    if limit is None or len(images) <= limit:
        return images
    if limit < 1:
        raise InputError(f"at most {limit} test images is none; give at least 1")
    return images.take(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))
