r"""Mahalanobis++ and RMD++: Mahalanobis distances of normalised features.

Fitted in float64 on the :class:`~isomax.moments.Moments` of the features, so that a memory-mapped
tensor of any length will do.
"""

from collections.abc import Callable

import torch
from pytorch_ood.api import (
    DetectorInfo,
    RequiresFittingException,
    Task,
)
from torch import Tensor
from torch.nn import functional as F

from isomax.moments import FeaturesOnStatistics, Moments, Statistics
from isomax.papers import MAHALANOBIS_PP

CHUNK = 2**22  # values scored at a time
RIDGE = 1e-6  # of the mean variance


class MahalanobisPP(FeaturesOnStatistics):
    r"""Mahalanobis++: the Mahalanobis distance of the normalised features to the nearest class.

    .. math:: \min_k \, (\hat z - \mu_k)^\top \Sigma^{-1} (\hat z - \mu_k), \quad
        \hat z = \frac{z}{\lVert z \rVert_2}

    with :math:`\mu_k` the mean of class :math:`k` and :math:`\Sigma` the covariance shared by the
    classes, both of the :math:`N` normalised training features:

    .. math:: \Sigma = \frac{1}{N} \sum_i (\hat z_i - \mu_{y_i}) (\hat z_i - \mu_{y_i})^\top

    *Singular covariance.* With :math:`N - C < D`, or a feature that is always zero,
    :math:`\Sigma` has directions without variance. The authors' pseudo-inverse leaves these out, so
    that nothing found there counts. Here, :math:`\epsilon I` is added wherever the smallest
    eigenvalue is below :math:`\epsilon = 10^{-6} \, \mathrm{tr}(\Sigma) / D`: what leaves the space
    of the training features is then far away. A covariance that can be inverted is left as it is.

    .. code-block:: python

        import torch
        from isomax import MahalanobisPP

        features, labels = torch.randn(200, 16), torch.arange(200) % 4
        detector = MahalanobisPP(None).fit_features(features, labels)
        scores = detector.predict_features(torch.randn(8, 16))

    Source: "Mahalanobis++: Improving OOD Detection via Feature Normalization",
    https://arxiv.org/abs/2505.18032.
    """

    info = DetectorInfo(paper=MAHALANOBIS_PP, tasks={Task.CLASSIFICATION}, ai_coded=True)

    center: Tensor  #: mean :math:`\mu_0` of the features, :math:`D`; there once fitted
    mu: Tensor  #: class means :math:`\mu_k`, :math:`C \times D`
    whitening: Tensor  #: :math:`D \times D`, with :math:`W W^\top = \Sigma^{-1}`
    ridge: float  #: :math:`\epsilon`, where it was added; 0 where it was not

    def __init__(self, encoder: Callable[[Tensor], Tensor] | None, normalize: bool = True) -> None:
        r"""
        :param encoder: gives pooled features, :math:`B \times D`; may be ``None`` when using
            ``fit_features(...)`` and ``predict_features(...)``
        :param normalize: whether :math:`\hat z = z / \lVert z \rVert_2`; otherwise
            :math:`\hat z = z`, the distance of https://arxiv.org/abs/1807.03888
        """
        super().__init__(encoder)
        self.normalize = normalize

    @torch.no_grad()
    def fit_statistics(self, statistics: Statistics) -> "MahalanobisPP":
        found = statistics.moments(self.normalize, self.device)
        self.mu, self.center = found.means, found.center
        values = found.spectrum[0]
        if not values[-1] > 0:
            raise ValueError(
                "the features do not vary within any class; fit on more samples of each"
            )
        floor = RIDGE * float(values.mean())
        self.ridge = floor if float(values[0]) < floor else 0.0
        self._invert(found)
        return self

    def _invert(self, found: Moments) -> None:
        self.whitening = _whitening(found.spectrum, self.ridge).to(self.mu)

    @torch.no_grad()
    def predict_features(self, z: Tensor) -> Tensor:
        r"""
        :param z: pooled features, :math:`B \times D`
        :return: scores, :math:`B`, in float64
        :raises RequiresFittingException: if the detector is not fitted
        """
        if not hasattr(self, "center"):
            raise RequiresFittingException
        parts = z.split(max(1, CHUNK // z.shape[1]))
        return torch.cat([self.distances(part) for part in parts])

    def distances(self, z: Tensor) -> Tensor:
        """:meth:`predict_features`, with a gradient and in one piece."""
        return self._distances(self._prepared(z, self.center))

    def _distances(self, z: Tensor) -> Tensor:
        # the center is taken off first: what is left is small where the whitening is large
        whitened = (z - self.center) @ self.whitening
        means = (self.mu - self.center) @ self.whitening
        return torch.cdist(whitened, means).amin(dim=1).square()

    def _prepared(self, z: Tensor, like: Tensor) -> Tensor:
        return F.normalize(z.to(like), dim=1) if self.normalize else z.to(like)


class RMDPP(MahalanobisPP):
    r"""RMD++: the relative Mahalanobis distance of the normalised features.

    .. math:: \min_k \, (\hat z - \mu_k)^\top \Sigma^{-1} (\hat z - \mu_k)
        - (\hat z - \mu_0)^\top \Sigma_0^{-1} (\hat z - \mu_0), \quad
        \hat z = \frac{z}{\lVert z \rVert_2}

    with the class means and the covariance :math:`\Sigma` of :class:`MahalanobisPP`, and the mean
    :math:`\mu_0` and the covariance :math:`\Sigma_0` of all normalised training features.

    *Singular covariance.* Both get the same :math:`\epsilon I`, under the condition of
    :class:`MahalanobisPP`. It has to be the same: :math:`\Sigma_0 \succeq \Sigma` (it has the
    variance between the classes on top), so that :math:`\Sigma_0` makes no deviation longer than
    :math:`\Sigma` does. Estimators that regularise each covariance on its own, such as Ledoit and
    Wolf's, break that: where they raise the small variances of :math:`\Sigma` further than those
    of :math:`\Sigma_0`, outliers, which are far away just there, get the lowest scores of all. So
    do the authors' pseudo-inverses where there are fewer samples than features. What leaves the
    space of the training features is as far from everything as from its class, and does not count.

    .. code-block:: python

        import torch
        from isomax import RMDPP

        features, labels = torch.randn(200, 16), torch.arange(200) % 4
        detector = RMDPP(None).fit_features(features, labels)
        scores = detector.predict_features(torch.randn(8, 16))

    Source: "Mahalanobis++: Improving OOD Detection via Feature Normalization",
    https://arxiv.org/abs/2505.18032; the relative distance is that of
    https://arxiv.org/abs/2106.09022.
    """

    info = DetectorInfo(paper=MAHALANOBIS_PP, tasks={Task.CLASSIFICATION}, ai_coded=True)

    background_whitening: Tensor  #: :math:`D \times D`, with :math:`W W^\top = \Sigma_0^{-1}`

    def _invert(self, found: Moments) -> None:
        super()._invert(found)
        background = torch.linalg.eigh(found.around(self.center).double().cpu())
        self.background_whitening = _whitening(background, self.ridge).to(self.mu)

    def _distances(self, z: Tensor) -> Tensor:
        background = (z - self.center) @ self.background_whitening
        return super()._distances(z) - background.square().sum(dim=1)


def _whitening(spectrum: tuple[Tensor, Tensor], ridge: float) -> Tensor:
    values, vectors = spectrum
    # in the order of memory that it has when it is read back, for equal scores to the last bit
    return (vectors / (values + ridge).sqrt()).contiguous()
