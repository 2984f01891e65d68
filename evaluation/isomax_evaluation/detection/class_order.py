"""In which order a model without class names has its classes: labelled images decide."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isomax.doubts import binomial_tail
from isomax_evaluation.data.images import Images, UnreadableError
from isomax_evaluation.data.listing.listing import in_order
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Progress, tell

SURE = 0.01  #: chance of an order that fits so much better, if none did
CLASSES = 20  #: that two orders are told apart by
IMAGES = 400
AT_ONCE = 16


def usual_orders(class_names: Sequence[str]) -> dict[str, list[str]]:
    """The orders that training scripts give the classes of a folder, each once.

    >>> usual_orders(["2", "10"])
    {'natural order (2, 10)': ['2', '10'], 'text order (10, 2)': ['10', '2']}
    >>> list(usual_orders(["cat", "dog"]))
    ['natural order (cat, dog)']
    """
    orders = {
        "natural order": in_order(class_names),  # timm's, and ours
        "text order": sorted(class_names),  # torchvision's
        "text order without case": sorted(class_names, key=lambda name: (name.casefold(), name)),
    }
    kept: dict[str, list[str]] = {}
    for how, order in orders.items():
        if order not in kept.values():
            kept[how] = order
    differ = _moved(list(kept.values())) if len(kept) > 1 else set(class_names)
    return {f"{name} ({_begin(order, differ)})": order for name, order in kept.items()}


def places_by_images(
    predict: Callable[[Tensor], Tensor],
    images: Images,
    transform: Any,
    name: str,
    progress: Progress,
) -> list[int]:
    r"""The place among the logits of each class of labelled images; which order it is, is told.

    A data set that is no files numbers its classes itself. Of a folder's usual orders the one is
    taken under which more images are classified right than under the next, :math:`w` against
    :math:`l` of those that only one has right, if

    .. math:: P(X \ge w) < 0.01, \quad X \sim \mathrm{B}(w + l, 1/2)

    It has to be better than chance, too, and not far behind what any order at all could reach.

    :param predict: from a batch of prepared images to predicted places among the logits
    :param images: of as many classes as the model has
    :param transform: from an image to a tensor
    :param name: of the model, for messages
    :raises InputError: if no order fits
    """
    if images.paths is None:
        return list(range(len(images.class_names)))
    orders = usual_orders(images.class_names)
    places = {how: [order.index(c) for c in images.class_names] for how, order in orders.items()}
    if len(orders) == 1:
        return places.popitem()[1]
    chosen = images.take(_telling(images, list(orders.values())))
    labels, predicted = _predicted(predict, chosen, transform)
    right = {how: predicted == np.array(at)[labels] for how, at in places.items()}
    ranked = sorted(right, key=lambda how: -int(right[how].sum()))
    said = [f"{right[how].mean() if len(labels) else 0:.0%} in {how}" for how in ranked]
    if not fits(right, predicted, labels, len(images.class_names)):
        raise InputError(
            f"{name} has no class names, and no usual order of the classes clearly fits: of "
            f"{len(labels)} images it has right {', '.join(said)}; give the names in the order of "
            "its logits (--class-names FILE, class_names in Python)"
        )
    tell(
        progress,
        f"{name} has no class names; its classes are taken in {ranked[0]}: of {len(labels)} images "
        f"it has right {', '.join(said)}",
    )
    return places[ranked[0]]


def fits(
    right: Mapping[str, np.ndarray], predicted: np.ndarray, labels: np.ndarray, classes: int
) -> bool:
    """Whether the best of several orders is clearly right.

    :param right: of each image, whether it is right under an order
    :param predicted: places among the logits
    :param labels: the classes
    """
    best, second = sorted(right.values(), key=lambda one: -int(one.sum()))[:2]
    won, lost = int((best & ~second).sum()), int((second & ~best).sum())
    # what is predicted at one place is most often of one class, under whatever order
    most = sum(np.bincount(labels[predicted == place]).max() for place in np.unique(predicted))
    return (
        binomial_tail(won, won + lost, 0.5) < SURE
        and binomial_tail(int(best.sum()), len(best), 1 / classes) < SURE
        and 2 * int(best.sum()) > most
    )


def _moved(orders: Sequence[Sequence[str]]) -> set[str]:
    """The classes whose places differ."""
    return {one for some in zip(*orders, strict=True) if len(set(some)) > 1 for one in some}


def _begin(order: Sequence[str], differ: set[str]) -> str:
    shown = [name for name in order if name in differ]
    return ", ".join(shown[:3]) + ", ..." * (len(shown) > 3)


def _telling(images: Images, orders: Sequence[Sequence[str]]) -> np.ndarray:
    """Positions of images, spread, of classes that orders put at different places."""
    wanted: set[int] = set()
    for pair in combinations(orders, 2):
        moved = sorted(map(images.class_names.index, _moved(pair)))
        places = np.linspace(0, len(moved) - 1, min(len(moved), CLASSES)).round().astype(int)
        wanted.update(moved[place] for place in places)
    found = []
    for label in sorted(wanted):
        members = np.flatnonzero(images.labels == label)
        count = min(len(members), max(1, IMAGES // len(wanted)))
        found.append(members[np.linspace(0, len(members) - 1, count).round().astype(int)])
    return np.concatenate(found)


def _predicted(
    predict: Callable[[Tensor], Tensor], images: Images, transform: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted places of the images that can be read."""

    def readable() -> Iterator[tuple[int, Tensor]]:
        for position, label in enumerate(images.labels.tolist()):
            try:
                image = images.image(position)
            except UnreadableError:  # which is said where all images are read
                continue
            yield label, transform(image)

    read = list(readable())
    labels = np.array([label for label, _ in read], dtype=int)
    batches = torch.stack([image for _, image in read]).split(AT_ONCE) if read else ()
    with torch.no_grad():
        found = [predict(batch).cpu().numpy() for batch in batches]
    return labels, np.concatenate(found) if found else labels
