r"""What makes a trained model no good: each a sentence with the way out, or nothing.

>>> of_accuracy(predicted=torch.arange(30) % 3, labels=torch.arange(30) % 3)
''
>>> of_threshold(2.0794415, largest=largest_score("entropic_score", num_classes=8))
'the threshold 2.07944 is not below the largest score that there is, 2.07944, so that no image will
be called unknown; train for longer, or choose another score or a larger alpha'
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isomax.heads import DistanceHead

SIGNIFICANCE = 0.05
ROUNDING = 16 * torch.finfo(torch.float32).eps  #: relative; what entropies of equal logits vary by


def of_accuracy(predicted: Tensor, labels: Tensor) -> str:
    r"""Whether the classes are found no more often than by naming the largest one every time.

    Doubted unless the exact binomial test says otherwise: with :math:`h` of :math:`n` samples right
    and :math:`q` the share of the largest class, unless

    .. math:: P(X \ge h) = \sum_{i = h}^n \binom{n}{i} q^i (1 - q)^{n - i} < 0.05

    :param predicted: classes, :math:`N`
    :param labels: :math:`N`, of samples not trained on; those below 0 are left out
    :raises ValueError: if shapes differ or no label is at least 0
    """
    if predicted.shape != labels.shape or not (labels >= 0).any():
        raise ValueError(
            f"predicted classes have shape {tuple(predicted.shape)}, labels {tuple(labels.shape)}; "
            "expected [N] both, with some label at least 0"
        )
    known = labels >= 0
    total, largest = int(known.sum()), int(labels[known].bincount().max())
    right = int((predicted == labels)[known].sum())
    probability = binomial_tail(right, total, largest / total)
    if probability < SIGNIFICANCE:
        return ""
    return (
        f"{right} of {total} images are classified right, no better than by naming the largest "
        f"class, {largest} of them, every time (p = {probability:.2g}); train for longer or at "
        "another learning rate, and see that the labels number the classes as the model does"
    )


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    r"""Probability of at least so many successes.

    .. math:: P(X \ge k) = \sum_{i = k}^n \binom{n}{i} q^i (1 - q)^{n - i}

    >>> binomial_tail(2, 2, 0.5)
    0.25
    """
    if successes <= 0 or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(i + 1)
        - math.lgamma(trials - i + 1)
        + i * math.log(probability)
        + (trials - i) * math.log1p(-probability)
        for i in range(successes, trials + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def of_scores(scores: Tensor, num_classes: int) -> str:
    r"""Whether all images get the same score but for rounding, as entropies do where the posteriors
    are uniform: all are then :math:`\log C`.

    :param scores: :math:`N`, of different images
    :param num_classes: :math:`C`
    """
    low, high = float(scores.min()), float(scores.max())
    if len(scores) < 2 or high - low > ROUNDING * max(abs(low), abs(high)):
        return ""
    uniform = abs(high - math.log(num_classes)) <= ROUNDING * high
    cause = f", the entropy of {num_classes} equal posteriors," if uniform else ""
    return (
        f"all {len(scores)} scores are {high:.6g}{cause} but for rounding, so that no image can be "
        "told from another; train for longer or at another learning rate"
    )


def of_distance_scale(head: DistanceHead) -> str:
    r"""Whether the learned distance scale is so small that even a perfect match has a posterior
    below nine tenths in training.

    .. math:: \frac{1}{1 + (C - 1) \, e^{-r}} < \frac{9}{10}, \quad r = E_s \, \Delta

    with :math:`\Delta` the head's :meth:`~isomax.DistanceHead.largest_difference` of two logits. A
    head without a scale is not doubted.
    """
    if not head.learns_distance_scale or head.num_classes < 2:
        return ""
    if head.entropic_scale * head.largest_difference() >= math.log(9 * (head.num_classes - 1)):
        return ""
    scale = abs(float(head.distance_scale.detach()))
    return (
        f"the distance scale is {scale:.2g}, too small for any image to be told as one of "
        f"{head.num_classes} classes: at this learning rate it falls faster than the prototypes "
        "find theirs; start them at the class means, or choose another rate"
    )


def of_threshold(threshold: float, largest: float) -> str:
    """Whether no score can lie beyond the threshold, so that nothing is ever called unknown.

    :param threshold: scores above it are rejected
    :param largest: the largest score that there is, from :func:`largest_score`, or the largest of
        many images, known and unknown
    """
    rounding = 0.0 if math.isinf(largest) else ROUNDING * abs(largest)
    if threshold < largest - rounding:
        return ""
    return (
        f"the threshold {threshold:.6g} is not below the largest score that there is, "
        f"{largest:.6g}, so that no image will be called unknown; train for longer, or choose "
        "another score or a larger alpha"
    )


def of_calibration(samples: int, alpha: float) -> str:
    r"""Whether the threshold is the largest of the calibration scores, as it is for fewer than
    :math:`(2 - \alpha) / \alpha` of them: its guarantee holds, but one score decides.

    :param samples: how many they are; of none nothing is said
    :param alpha: false-alarm rate of the threshold
    """
    enough = math.ceil(round((2 - alpha) / alpha, 9))
    if not 0 < samples < enough:
        return ""
    return (
        f"the threshold is the largest score of {samples} calibration images, so that a single odd "
        f"one decides what is called unknown; hold out more of them, {enough} at least"
    )


def of_ties(scores: Sequence[float], alpha: float, tolerance: float = 0.0) -> str:
    r"""Whether more than alpha of the calibration images share the largest score, so that only what
    lies beyond it has a p-value of at most alpha.

    :param scores: of the calibration images, :math:`n`
    :param alpha: false-alarm rate of the threshold
    :param tolerance: scores that are no further apart are the same
    """
    largest = max(scores, default=0.0)
    shared = sum(score >= largest - tolerance for score in scores)
    if shared < 2 or (1 + shared) / (len(scores) + 1) <= alpha:
        return ""
    return (
        f"{shared} of {len(scores)} calibration images share the largest score, {largest:.6g}, so "
        "that only an image beyond it can be called unknown, and none where no score is larger; "
        "choose another detector, or an alpha of more than "
        f"{math.ceil(1000 * (1 + shared) / (len(scores) + 1)) / 1000:g}"
    )


def largest_score(score: str, num_classes: int, head: DistanceHead | None = None) -> float:
    r"""The largest value that a score can take; infinite where it has no bound.

    :param score: a name in :data:`isomax.functional.SCORES`
    :param num_classes: :math:`C`
    :param head: the head whose logits are scored, or ``None`` for a linear one. With
        :math:`b` its :meth:`~isomax.DistanceHead.largest_distance`, the minimum distance score is
        at most :math:`b`, and the max-mean logit entropy score :math:`2 b + \log C`.
    :raises ValueError: if the score is unknown
    """
    bound = math.inf if head is None else head.largest_distance()
    bounds = {
        "entropic_score": math.log(num_classes),
        "minimum_distance_score": bound,
        "max_mean_logit_entropy_score": 2 * bound + math.log(num_classes),
        "energy_score": math.inf,
    }
    if score not in bounds:
        raise ValueError(f"unknown score {score!r}; choose from {', '.join(bounds)}")
    return bounds[score]


def of_loss(losses: Sequence[float], num_classes: int) -> str:
    r"""Whether the training loss has not fallen, and is no small part of :math:`\log C`.

    :param losses: mean training loss of each epoch, at least two to say anything
    :param num_classes: :math:`C`
    """
    if len(losses) < 2 or losses[-1] < losses[0] or losses[-1] < 0.1 * math.log(num_classes):
        return ""
    return (
        f"the training loss has not fallen, from {losses[0]:.4g} in the first epoch to "
        f"{losses[-1]:.4g} in the last; choose a lower learning rate"
    )
