"""The papers' scores as detectors of pytorch-ood's API: larger means more likely OOD."""

from collections.abc import Callable

from pytorch_ood.api import DetectorInfo, LogitsDetector, Task
from torch import Tensor

from isomax.functional import (
    entropic_score,
    max_mean_logit_entropy_score,
    minimum_distance_score,
    of_distances,
)
from isomax.papers import DISMAX, ISOMAX, ISOMAX_PLUS

_TASKS = frozenset({Task.CLASSIFICATION, Task.SEGMENTATION})


class _Score(LogitsDetector):
    def __init__(self, model: Callable[[Tensor], Tensor] | None) -> None:
        """
        :param model: a model with one of our heads, in evaluation mode; may be ``None`` when
            using ``predict_logits(...)`` directly
        """
        super().__init__()
        self.model = model


class EntropicScore(_Score):
    r"""Entropy of the posteriors at inference, without the entropic scale.

    .. math:: \mathrm{ES}(x) = -\sum_k \pi_k \log \pi_k, \quad \pi = \mathrm{softmax}(f(x))

    Needs no fitting, no outliers and no backward pass. Put the model in evaluation mode first.

    .. code-block:: python

        import torch
        from isomax import EntropicScore, IsoMaxHead

        detector = EntropicScore(IsoMaxHead(in_features=64, num_classes=10).eval())
        scores = detector(torch.randn(8, 64))
    """

    info = DetectorInfo(paper=ISOMAX, tasks=_TASKS, ai_coded=True)

    def predict_logits(self, logits: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
        :return: entropies in nats, :math:`B` (:math:`B \times H \times W`)
        :raises ValueError: if logits are positive: they are of no distance head
        """
        return entropic_score(of_distances(logits))


class MinimumDistanceScore(_Score):
    r"""Distance to the nearest prototype.

    .. math:: \mathrm{MDS}(x) = \min_k d_k(x) = -\max_k f_k(x)

    Needs no fitting, no outliers and no backward pass. Put the model in evaluation mode first.

    .. code-block:: python

        import torch
        from isomax import IsoMaxPlusHead, MinimumDistanceScore

        detector = MinimumDistanceScore(IsoMaxPlusHead(in_features=64, num_classes=10).eval())
        scores = detector(torch.randn(8, 64))
    """

    info = DetectorInfo(paper=ISOMAX_PLUS, tasks=_TASKS, ai_coded=True)

    def predict_logits(self, logits: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
        :return: distances, :math:`B` (:math:`B \times H \times W`)
        :raises ValueError: if logits are positive: they are of no distance head
        """
        return minimum_distance_score(logits)


class MaxMeanLogitEntropyScore(_Score):
    r"""Maximum and mean logit combined with the entropy of the posteriors.

    .. math:: \mathrm{MMLES}(x) = -\Bigl(\max_k f_k(x) + \frac{1}{C} \sum_k f_k(x)\Bigr)
        + \mathrm{ES}(x)

    Needs no fitting, no outliers and no backward pass. Put the model in evaluation mode first.

    .. code-block:: python

        import torch
        from isomax import DisMaxHead, MaxMeanLogitEntropyScore

        detector = MaxMeanLogitEntropyScore(DisMaxHead(in_features=64, num_classes=10).eval())
        scores = detector(torch.randn(8, 64))
    """

    info = DetectorInfo(paper=DISMAX, tasks=_TASKS, ai_coded=True)

    def predict_logits(self, logits: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
        :return: scores, :math:`B` (:math:`B \times H \times W`)
        :raises ValueError: if logits are positive: they are of no distance head
        """
        return max_mean_logit_entropy_score(logits)


DETECTORS: dict[str, type[LogitsDetector]] = {
    "entropic_score": EntropicScore,
    "minimum_distance_score": MinimumDistanceScore,
    "max_mean_logit_entropy_score": MaxMeanLogitEntropyScore,
}
"""The detector of each score that a head names as its own."""
