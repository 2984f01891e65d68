"""Training objectives as modules; the mathematics is in :mod:`isomax.functional`."""

from pytorch_ood.api import LossInfo, Representation, Task
from torch import Tensor, nn

from isomax.functional import (
    ENTROPIC_SCALE,
    REDUCTIONS,
    fractional_probability_loss,
    isomax_loss,
)
from isomax.papers import DISMAX, ISOMAX


class IsoMaxLoss(nn.Module):
    r"""The loss of IsoMax, IsoMax+ and DisMax, for logits of their heads.

    .. math:: \mathcal{L}(z, y) = -\log \frac{e^{E_s z_y}}{\sum_k e^{E_s z_k}}

    The entropic scale :math:`E_s` is there during training and taken away at inference: the
    network reaches a low loss while its posteriors keep a high entropy.

    Takes labels or class probabilities (mixup, label smoothing). Outliers (labels < 0) are
    discarded with a warning.

    *Training with outliers.* The loss is cross-entropy of :math:`E_s z`, so every loss of
    pytorch-ood on logits goes on top of an IsoMax head: multiply the logits by the scale, or let
    a head in drop-in mode do it. For outlier exposure,

    .. code-block:: python

        criterion = pytorch_ood.loss.OutlierExposureLoss(alpha=0.5)
        loss = criterion(10.0 * model(images), labels)  # labels < 0 are outliers

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
        if not entropic_scale > 0:
            raise ValueError(f"entropic_scale is {entropic_scale}; expected a positive number")
        reduction = reduction or "none"
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
        self.entropic_scale = entropic_scale
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
        :param target: labels :math:`B` (:math:`B \times H \times W`), or class probabilities of
            the shape of the logits; labels :math:`< 0` are discarded
        :return: the loss; with ``none`` one value per sample, zero for outliers
        :raises ValueError: if shapes do not fit or a label is not below C
        """
        return isomax_loss(logits, target, self.entropic_scale, self.reduction)

    def extra_repr(self) -> str:
        return f"entropic_scale={self.entropic_scale}, reduction={self.reduction!r}"


class FractionalProbabilityLoss(nn.Module):
    r"""DisMax's loss with fractional probability regularisation (FPR).

    The mean Kullback-Leibler divergence from the posteriors :math:`\mathrm{softmax}(E_s z)` to
    targets made by :func:`isomax.functional.mosaic`:

    .. code-block:: python

        images, target = mosaic(images, labels, num_classes)
        loss = FractionalProbabilityLoss()(model(images), target)

    Source: "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874.
    """

    info = LossInfo(
        paper=DISMAX,
        tasks={Task.CLASSIFICATION},
        inputs={Representation.LOGITS},
        supervised=False,
        ai_coded=True,
    )

    def __init__(self, entropic_scale: float = ENTROPIC_SCALE) -> None:
        r"""
        :param entropic_scale: :math:`E_s`
        """
        super().__init__()
        self.entropic_scale = entropic_scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        r"""
        :param logits: :math:`B \times C`
        :param target: class probabilities :math:`B \times C`
        :return: a scalar
        :raises ValueError: if the shapes differ or the target holds labels
        """
        return fractional_probability_loss(logits, target, self.entropic_scale)
