r"""A head trained alone, on the features of a backbone that stays as it is: seconds."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from isomax.functional import isomax_loss
from isomax.heads import DistanceHead
from isomax.moments import CHUNK, Moments
from isomax.starting import Head, checked_labels, num_classes_of

LINEAR_RATE = 3.0
"""Learning rate of ``nn.Linear``, to be divided by the mean squared norm of the features. It and
the ``rate`` of each head were chosen by accuracy on images set apart, with 5 to 300 images of each
of 2 to 200 classes of Tiny ImageNet and CIFAR-10 on EfficientNet-Lite0 from ImageNet."""

Criterion = Callable[[Tensor, Tensor], Tensor]


def fit_head(
    head: Head,
    features: Tensor,
    labels: Tensor,
    epochs: int = 20,
    lr: float | None = None,
    batch_size: int = 64,
    weight_decay: float = 1e-4,
    criterion: Criterion | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> list[dict[str, float]]:
    r"""Train a head on features: SGD with Nesterov momentum 0.9, the learning rate falling from
    its full value to zero along a cosine.

    Starts from where the head is (see :mod:`isomax.starting`). The order of the samples is the
    seed's; no other random number is drawn, so that equal calls give equal weights.

    :param head: one of our heads or ``nn.Linear``, changed in place, on any device
    :param features: :math:`N \times D`; may be memory-mapped, a batch is read at a time
    :param labels: :math:`N`; samples with labels below 0 are left out
    :param epochs: passes over the samples
    :param lr: learning rate; if not given, :func:`learning_rate`
    :param batch_size: samples per update
    :param weight_decay: of all parameters alike, as in the papers
    :param criterion: of logits and labels; if not given, the loss of IsoMax for our heads and
        cross-entropy for ``nn.Linear``. The logits are those at inference, in drop-in mode too.
    :param validation: features and labels to measure the accuracy on after each epoch
    :param seed: of the order of the samples
    :return: of each epoch, ``epoch``, ``train_loss`` and, with validation features,
        ``val_accuracy``
    :raises ValueError: if shapes or settings cannot be used, no label is at least 0, or the loss
        is not finite
    :raises TypeError: if the head is neither ours nor ``nn.Linear``
    """
    labels = checked_labels(features, labels, num_classes_of(head))
    lr = learning_rate(head, features, labels) if lr is None else lr
    if epochs < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"epochs is {epochs}, batch_size {batch_size}, lr {lr}; expected at least 0, at least "
            "1 and a positive number"
        )
    known = (labels >= 0).nonzero().flatten()
    if not len(known):
        raise ValueError("no label is at least 0; train on in-distribution samples")
    criterion = _criterion(head) if criterion is None else criterion
    optimizer = torch.optim.SGD(
        head.parameters(), lr, momentum=0.9, weight_decay=weight_decay, nesterov=True
    )
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs * math.ceil(len(known) / batch_size))
    generator = torch.Generator().manual_seed(seed)
    history = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in known[torch.randperm(len(known), generator=generator)].split(batch_size):
            with torch.enable_grad():
                logits = _logits(head, features[batch])
                loss = criterion(logits, labels[batch].to(logits.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += float(loss.detach()) * len(batch)
        if not math.isfinite(total):
            raise ValueError(
                f"the loss is {total} in epoch {epoch} at learning rate {lr}; choose a lower one, "
                "or look for NaN in the features"
            )
        history.append({"epoch": epoch, "train_loss": total / len(known)})
        if validation is not None:
            history[-1]["val_accuracy"] = accuracy(head, *validation)
    return history


@torch.no_grad()
def classified_right(head: Head, features: Tensor, labels: Tensor) -> Tensor:
    r"""Of each sample whether its largest logit is that of its label.

    :param head: one of our heads or ``nn.Linear``
    :param features: :math:`N \times D`; may be memory-mapped, a chunk is read at a time
    :param labels: :math:`N`; samples with labels below 0 are left out
    :return: booleans, of as many samples as have labels of at least 0, on the CPU
    :raises ValueError: if shapes do not fit or no label is at least 0
    """
    labels = checked_labels(features, labels, num_classes_of(head))
    if not (labels >= 0).any():
        raise ValueError("no label is at least 0; give in-distribution samples")
    rows = max(1, CHUNK // max(features.shape[1], num_classes_of(head)))
    right = [
        _logits(head, part).argmax(dim=1).cpu() == truth
        for part, truth in zip(features.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(right)[labels >= 0]


def accuracy(head: Head, features: Tensor, labels: Tensor) -> float:
    r"""Share of the samples whose largest logit is that of their label.

    Parameters and errors as in :func:`classified_right`.

    :return: a fraction in :math:`[0, 1]`
    """
    right = classified_right(head, features, labels)
    return int(right.sum()) / len(right)


def learning_rate(head: Head, features: Tensor, labels: Tensor) -> float:
    r"""The learning rate that :func:`fit_head` takes of itself.

    The head's ``rate``; for ``nn.Linear`` :data:`LINEAR_RATE` divided by the mean of
    :math:`\lVert f \rVert^2`, to which the curvature of its loss is proportional. Directions know
    no length, and IsoMax from zero begins with directions: near zero,
    :math:`\lVert f - p_k \rVert \approx \lVert f \rVert - p_k \cdot f / \lVert f \rVert`.

    :param head: one of our heads or ``nn.Linear``
    :param features: :math:`N \times D`; a memory-mapped tensor is read once, a chunk at a time
    :param labels: :math:`N`; samples with labels below 0 are left out
    :raises ValueError: if the features are all zero, for ``nn.Linear``
    :raises TypeError: if the head is neither ours nor ``nn.Linear``
    """
    labels = checked_labels(features, labels, num_classes_of(head))
    if not isinstance(head, nn.Linear):
        return head.rate
    known = Moments(features, labels, normalize=False, device="cpu").chunks()
    total = sum(float(rows.square().sum()) for rows, _ in known)
    if total == 0:
        raise ValueError("the features are all zero; look at the model that gave them")
    return LINEAR_RATE * int((labels >= 0).sum()) / total


def _criterion(head: Head) -> Criterion:
    if isinstance(head, DistanceHead):
        return partial(isomax_loss, entropic_scale=head.entropic_scale)
    return F.cross_entropy


def _logits(head: Head, features: Tensor) -> Tensor:
    features = features.to(next(head.parameters()))
    logits: Tensor = head.logits(features) if isinstance(head, DistanceHead) else head(features)
    return logits
