"""One pass over images: what a model makes of each batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import length_hint

import torch
from torch import Tensor

from isomax_adapters.pytorch_ood import Parts
from isomax_evaluation.extraction.store import Keeper

Loader = Iterable[tuple[Tensor, Tensor]]


def nothing(done: int) -> None:
    """For whom it does not matter how many images are done."""


@dataclass(frozen=True)
class Batch:
    """Some images on the model's device, and its last feature maps if they were asked for."""

    images: Tensor
    labels: Tensor
    maps: Tensor | None


def one_pass(
    parts: Parts,
    loader: Loader,
    keeper: Keeper,
    maps: bool = False,
    known_only: bool = False,
    advance: Callable[[int], None] = nothing,
) -> Iterator[Batch]:
    """Run a model over images, once; its logits and pooled features are kept.

    If they are kept already, the model only runs for feature maps.

    :param parts: a model in evaluation mode
    :param loader: yields (images, labels)
    :param keeper: takes logits, features and labels, in order
    :param maps: give the last feature maps with each batch
    :param known_only: leave out images with labels below 0
    :param advance: called with the number of images done since the last call
    :raises InputError: if the outputs cannot be kept
    """
    if keeper.read() is not None:
        yield from _batches(parts, loader, maps, known_only, advance)
        return
    with keeper:
        for images, labels in _on_device(parts, loader, known_only, advance):
            with torch.no_grad():
                found = (
                    parts.logits_features_and_maps(images)
                    if maps
                    else parts.logits_and_features(images)
                )
            keeper.add(found[0], found[1], labels)
            yield Batch(images, labels, found[2] if maps else None)  # type: ignore[misc]


def _batches(
    parts: Parts, loader: Loader, maps: bool, known_only: bool, advance: Callable[[int], None]
) -> Iterator[Batch]:
    for images, labels in _on_device(parts, loader, known_only, advance):
        with torch.no_grad():
            found = parts.feature_maps(images) if maps else None
        yield Batch(images, labels, found)


@dataclass(frozen=True)
class Known:
    """Batches on the model's device, without images whose labels are below 0."""

    parts: Parts
    loader: Loader
    advance: Callable[[int], None] = nothing

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with torch.random.fork_rng(devices=()):  # a loader draws a number, too
            batches = iter(self.loader)
        return _on_device(self.parts, batches, True, self.advance)

    def __len__(self) -> int:
        return length_hint(self.loader)


def _on_device(
    parts: Parts, loader: Loader, known_only: bool, advance: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in loader:
        count = len(labels)
        if known_only and bool((labels < 0).any()):
            images, labels = images[labels >= 0], labels[labels >= 0]
        if len(labels):
            yield images.to(parts.device), labels
        advance(count)
