"""pytorch-ood's detectors where a shortcut of theirs changes the scores.

- Mahalanobis distances: the covariance is inverted in float32, which is noise as soon as it is
  nearly singular. :class:`isomax.MahalanobisPP` without normalisation is the same distance in
  float64; :class:`MahalanobisODIN` steps along its gradient.
- GMM: its ridge is 1e-6 whatever the features' unit, and all features are copied.
- OpenMax: distances are computed to those classes only that some sample of the batch is predicted
  as, and are 0 for the others, so that a score depends on its batch.
- pNML: the pseudo-inverse is taken in float32, which drops directions with little variance.
- ViM: so is the space of the least variance, and all features are copied.
- Temperature scaling: the search ends after 50 steps of a hundredth, far from the minimum.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import GradientDetector, RequiresFittingException
from torch import Tensor
from torch.nn import functional as F

from isomax import MahalanobisPP, fit_temperature
from isomax.mahalanobis import CHUNK, RIDGE, finest_dtype
from isomax_adapters.runtime.errors import InputError


class MahalanobisODIN(GradientDetector):
    r"""The Mahalanobis distance of images moved a step towards their nearest class.

    .. math:: x' = x - \frac{\varepsilon}{\sigma} \, \mathrm{sign}(\nabla_x M(x))

    with :math:`M` the squared distance and :math:`\sigma` the standard deviation that each channel
    was divided by, so that :math:`\varepsilon` is in units of pixels from 0 to 1.
    """

    info = ood.MahalanobisODIN.info
    requires_fit = True

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], std: Sequence[float], eps: float = 0.002
    ) -> None:
        """
        :param encoder: gives pooled features, :math:`B \\times D`
        :param std: of the channels
        :param eps: the step
        """
        super().__init__()
        self.encoder = encoder
        self.eps = eps
        self.std = torch.tensor(std)[:, None, None]
        self.distance = MahalanobisPP(encoder, normalize=False)

    def fit(self, data_loader: Any) -> "MahalanobisODIN":
        """Fit on the features of images; labels below 0 are left out."""
        self.distance.fit(data_loader)
        return self

    def fit_features(self, z: Tensor, y: Tensor) -> "MahalanobisODIN":
        """Fit on pooled features, :math:`N \\times D`, with labels."""
        self.distance.fit_features(z, y)
        return self

    def to(self, device: str | torch.device) -> "MahalanobisODIN":
        """Move what was fitted along."""
        super().to(device)
        self.distance.to(device)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Scores of images, :math:`B`; with a backward pass."""
        with torch.enable_grad():
            x = x.detach().to(self.std.device).requires_grad_()
            (gradient,) = torch.autograd.grad(self.distance.distances(self.encoder(x)).sum(), x)
        scores: Tensor = self.distance.predict(x.detach() - self.eps * gradient.sign() / self.std)
        return scores


class GMM(ood.GMM):
    r"""``GMM`` whose ridge is a share of the variance, fitted a class at a time.

    .. math:: \Sigma_k + \epsilon I, \quad
        \epsilon = r \, \frac{1}{K D} \sum_k \mathrm{tr}(\Sigma_k)
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor] | None, reg: float = RIDGE) -> None:
        """
        :param encoder: gives pooled features, :math:`B \\times D`
        :param reg: :math:`r`
        """
        super().__init__(encoder, reg)

    @torch.no_grad()
    def fit_features(self, z: Tensor, labels: Tensor) -> "GMM":
        """
        :param z: pooled features, :math:`N \\times D`; may be memory-mapped
        :param labels: :math:`N`; those below 0 are left out
        :raises InputError: if no label is at least 0, or no class varies
        """
        classes, counts = labels[labels >= 0].unique(return_counts=True)
        if not len(classes):
            raise InputError("no label is at least 0; fit on in-distribution samples")
        like = _square(z, self.device or z.device)
        means, covariances = [], []
        for label in classes:
            rows = z[(labels == label).to(z.device)].to(like)
            means.append(rows.mean(dim=0))
            covariances.append((rows - means[-1]).T @ (rows - means[-1]) / len(rows))
        ridge = self.reg * sum(float(c.diagonal().mean()) for c in covariances) / len(classes)
        log_dets = []
        for place, covariance in enumerate(covariances):
            covariance.diagonal().add_(ridge)
            triangle, failed = torch.linalg.cholesky_ex(covariance)
            if failed:
                raise InputError(
                    f"the features of class {int(classes[place])} span too few directions, even "
                    f"with a ridge of {self.reg:g} of the variance; set reg higher"
                )
            covariances[place] = torch.cholesky_inverse(triangle)
            log_dets.append(2 * triangle.diagonal().log().sum())
        self._mu, self._precision = torch.stack(means), torch.stack(covariances)
        self._log_det = torch.stack(log_dets)
        self._log_weights = (counts / counts.sum()).to(like).log()
        return self


class OpenMax(ood.OpenMax):
    r"""``OpenMax`` whose scores do not depend on the batch.

    With :math:`w_k` the Weibull probability that a sample is too far from class :math:`k`, and
    :math:`r_k` from 1 for the class of the largest logit down to 0 in :math:`\alpha` steps:

    .. math:: \hat z_k = z_k (1 - w_k r_k), \quad \hat z_0 = \sum_k z_k w_k r_k, \quad
        \mathrm{score} = \mathrm{softmax}(\hat z)_0
    """

    def predict_logits(self, logits: Tensor) -> Tensor:
        """
        :param logits: :math:`B \\times C`
        :return: probability of the unknown class, :math:`B`
        :raises RequiresFittingException: if the detector is not fitted
        """
        fitted = self._openmax
        if fitted is None:
            raise RequiresFittingException
        z = logits.detach().cpu().double().numpy()
        too_far = np.ones_like(z)
        for k, weibull in fitted.distributions.items():
            too_far[:, k] = weibull.w_score(fitted._get_dists_to_center(k, z))
        rank = (-z).argsort(axis=1).argsort(axis=1)
        revised = z * too_far * np.clip(1 - rank / fitted.alpha, 0, None)
        with_unknown = np.column_stack([revised.sum(axis=1), z - revised])
        return torch.from_numpy(with_unknown).softmax(dim=1)[:, 0].to(logits.device)


class PNML(ood.PNML):
    """``PNML`` in float64, fitted a chunk at a time."""

    @torch.no_grad()
    def fit_features(self, z: Tensor, labels: Tensor) -> "PNML":
        """
        :param z: pooled features, :math:`N \\times D`; may be memory-mapped
        :param labels: :math:`N`; those below 0 are left out
        :raises InputError: if no label is at least 0
        """
        gram = _square(z, self.device or z.device)
        for rows in _known(z, labels, gram):
            rows = F.normalize(rows, dim=1)
            gram.addmm_(rows.T, rows)
        inverse = torch.linalg.pinv(gram.cpu().double(), hermitian=True)
        self._feature_projector = inverse.to(gram)
        return self

    @torch.no_grad()
    def predict_features(self, z: Tensor) -> Tensor:
        """
        :param z: pooled features, :math:`B \\times D`
        :return: normalised regret, :math:`B`
        :raises RequiresFittingException: if the detector is not fitted
        """
        if self._feature_projector is None:
            raise RequiresFittingException
        log_p = self.head(F.normalize(z, dim=1)).to(self._feature_projector).log_softmax(dim=1)
        rows = F.normalize(z.to(self._feature_projector), dim=1)
        projection = ((rows @ self._feature_projector) * rows).sum(dim=1, keepdim=True)
        kappa = projection / (1 + projection)
        # p / (p + (1 - p) p^kappa), without a division of two small numbers
        p = log_p.exp()
        terms = 1 / (1 + (1 - p) * ((kappa - 1) * log_p).exp())
        return terms.sum(dim=1).log() / math.log(p.shape[1])


class ViM(ood.ViM):
    """``ViM`` in float64, fitted a chunk at a time."""

    w: Tensor
    b: Tensor
    #: whether the fitted samples lie in the principal subspace, but for rounding errors
    spans_nothing_else: bool = False

    @torch.no_grad()
    def fit_features(self, z: Tensor, labels: Tensor) -> "ViM":
        """
        :param z: pooled features, :math:`N \\times D`; may be memory-mapped, and is read twice
        :param labels: :math:`N`; those below 0 are left out
        :raises InputError: if no label is at least 0, or the principal subspace is all there is
        """
        principal = self.d if self.d <= z.shape[1] else z.shape[1] // 2
        if principal == z.shape[1]:
            raise InputError(
                f"d is {self.d}, which is all of the features' dimensions; give a smaller one"
            )
        scatter = _square(z, self.w.device)
        self.w, self.b = self.w.to(scatter), self.b.to(scatter)
        self.u = -torch.linalg.pinv(self.w) @ self.b
        for rows in _known(z, labels, scatter):
            rows = rows - self.u
            scatter.addmm_(rows.T, rows)
        vectors = torch.linalg.eigh(scatter.cpu().double()).eigenvectors
        residual = vectors[:, : z.shape[1] - principal]
        self.principal_subspace = residual.to(scatter).contiguous()
        largest = norms = lengths = 0.0
        for rows in _known(z, labels, scatter):
            largest += float(self._get_logits(rows).amax(dim=1).sum())
            rows = rows - self.u
            norms += float((rows @ self.principal_subspace).norm(dim=1).sum())
            lengths += float(rows.norm(dim=1).sum())
        self.alpha = largest / norms
        self.spans_nothing_else = norms < torch.finfo(scatter.dtype).eps ** 0.5 * lengths
        return self

    @torch.no_grad()
    def predict_features(self, z: Tensor) -> Tensor:
        """
        :param z: pooled features, :math:`B \\times D`
        :return: virtual logit minus energy, :math:`B`
        :raises RequiresFittingException: if the detector is not fitted
        """
        if self.principal_subspace is None:
            raise RequiresFittingException
        z = z.to(self.w)
        residual = ((z - self.u) @ self.principal_subspace).norm(dim=1)
        return self.alpha * residual - self._get_logits(z).logsumexp(dim=1)


class TemperatureScaling(ood.TemperatureScaling):
    """``TemperatureScaling`` at the temperature of the least negative log-likelihood."""

    def fit_logits(self, logits: Tensor, labels: Tensor) -> "TemperatureScaling":
        """
        :param logits: :math:`N \\times C`
        :param labels: :math:`N`; those below 0 are left out
        """
        known = labels >= 0
        with torch.no_grad():
            self.t.fill_(fit_temperature(logits[known], labels[known]))
        self._is_fitted = True
        return self


def _square(z: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(z.shape[1], z.shape[1], dtype=finest_dtype(device), device=device)


def _known(z: Tensor, labels: Tensor, like: Tensor) -> Iterator[Tensor]:
    """Features without outliers, a chunk at a time."""
    if not (labels >= 0).any():
        raise InputError("no label is at least 0; fit on in-distribution samples")
    step = max(1, CHUNK // z.shape[1])
    for start in range(0, len(z), step):
        known = (labels[start : start + step] >= 0).to(z.device)
        yield z[start : start + step][known].to(like)
