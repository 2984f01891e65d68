"""Training objectives as modules; the mathematics is in :mod:`isomax.functional`."""

from pytorch_ood.api import LossInfo, Representation, Task
from torch import Tensor, nn

from isomax.functional import (
    ENTROPIC_SCALE,
    checked_reduction,
    fractional_probability_loss,
    isomax_loss,
)
from isomax.papers import DISMAX, ISOMAX


class IsoMaxLoss(nn.Module):
    r"""The loss of IsoMax, IsoMax+ and DisMax, for logits of their heads.

    .. math:: \mathcal{L}(z, y) = -\log \frac{e^{E_s z_y}}{\sum_k e^{E_s z_k}}

    The entropic scale :math:`E_s` is there during training and taken away at inference: the
    network reaches a low loss while its posteriors keep a high entropy.

    Takes labels or class probabilities (mixup, label smoothing). Outliers (targets < 0) are
    discarded with a warning.

    .. code-block:: python

        import torch
        from isomax import IsoMaxHead, IsoMaxLoss

        head = IsoMaxHead(in_features=64, num_classes=10)
        features, labels = torch.randn(8, 64), torch.arange(8)
        loss = IsoMaxLoss()(head(features), labels)

    *Training with outliers.* The loss is cross-entropy of :math:`E_s z`, so every loss of
    pytorch-ood on logits goes on top of an IsoMax head: multiply the logits by the scale, or let
    a head in drop-in mode do it. For outlier exposure,

    .. code-block:: python

        import torch
        from isomax import IsoMaxHead
        from pytorch_ood.loss import OutlierExposureLoss

        head = IsoMaxHead(in_features=64, num_classes=10)
        features, labels = torch.randn(8, 64), torch.arange(8) - 2  # labels < 0 are outliers
        loss = OutlierExposureLoss(alpha=0.5)(10.0 * head(features), labels)

    Source: "Entropic Out-of-Distribution Detection", https://arxiv.org/abs/2006.04005.
    """

    info = LossInfo(
        paper=ISOMAX,
        tasks={Task.CLASSIFICATION, Task.SEGMENTATION},
        inputs={Representation.LOGITS},
        supervised=False,
        ai_coded=True,
    )

    def __init__(
        self, entropic_scale: float = ENTROPIC_SCALE, reduction: str | None = "mean"
    ) -> None:
        r"""
        :param entropic_scale: :math:`E_s`; 10 in all papers, not a knob to tune
        :param reduction: ``mean``, ``sum`` or ``none``
        :raises ValueError: if the scale is not positive or the reduction unknown
        """
        super().__init__()
        self.entropic_scale = _checked_scale(entropic_scale)
        self.reduction = checked_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
        :param target: labels :math:`B` (:math:`B \times H \times W`), or class probabilities of
            the shape of the logits; samples with targets :math:`< 0` are discarded
        :return: the loss; with ``none`` one value per sample, zero for outliers
        :raises ValueError: if shapes do not fit, a label is not below C, or logits are positive:
            they are of no distance head
        """
        return isomax_loss(logits, target, self.entropic_scale, self.reduction)

    def extra_repr(self) -> str:
        return f"entropic_scale={self.entropic_scale}, reduction={self.reduction!r}"


class FractionalProbabilityLoss(nn.Module):
    r"""DisMax's loss with fractional probability regularisation (FPR).

    The Kullback-Leibler divergence from the posteriors :math:`\mathrm{softmax}(E_s z)` to targets
    made by :func:`isomax.functional.mosaic`, its mean over the plain images and that over the
    mosaics weighing half each (:func:`isomax.functional.fractional_probability_loss`).

    .. code-block:: python

        import torch
        from isomax import DisMaxHead, FractionalProbabilityLoss
        from isomax.functional import mosaic
        from torch import nn

        model = nn.Sequential(nn.Flatten(), DisMaxHead(in_features=3 * 8 * 8, num_classes=10))
        images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
        images, target = mosaic(images, labels, num_classes=10)
        loss = FractionalProbabilityLoss()(model(images), target)

    Outliers (targets < 0) are discarded with a warning; :func:`~isomax.functional.mosaic` makes no
    mosaics of them.

    Source: "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874.
    """

    info = LossInfo(
        paper=DISMAX,
        tasks={Task.CLASSIFICATION},
        inputs={Representation.LOGITS},
        supervised=False,
        ai_coded=True,
    )

    def __init__(
        self, entropic_scale: float = ENTROPIC_SCALE, reduction: str | None = "mean"
    ) -> None:
        r"""
        :param entropic_scale: :math:`E_s`
        :param reduction: ``mean``, ``sum`` or ``none``
        :raises ValueError: if the scale is not positive or the reduction unknown
        """
        super().__init__()
        self.entropic_scale = _checked_scale(entropic_scale)
        self.reduction = checked_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`
        :param target: class probabilities :math:`B \times C`, or labels :math:`B` of a batch
            without mosaics; samples with targets :math:`< 0` are discarded
        :return: the loss; with ``none`` one value per sample, zero for outliers
        :raises ValueError: if shapes do not fit, a label is not below C, or logits are positive:
            they are of no distance head
        """
        return fractional_probability_loss(logits, target, self.entropic_scale, self.reduction)

    def extra_repr(self) -> str:
        return f"entropic_scale={self.entropic_scale}, reduction={self.reduction!r}"


def _checked_scale(entropic_scale: float) -> float:
    if not entropic_scale > 0:
        raise ValueError(f"entropic_scale is {entropic_scale}; expected a positive number")
    return entropic_scale
