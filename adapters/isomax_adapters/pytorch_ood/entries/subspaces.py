"""Detectors by the space that the features of the training images span."""

import math
from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import RequiresFittingException
from torch import Tensor
from torch.nn import functional as F

from isomax.moments import OnStatistics, Statistics
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, needs_weights
from isomax_adapters.runtime.errors import InputError


class PNML(OnStatistics, ood.PNML):
    """``PNML`` in float64, fitted a chunk at a time."""

    @torch.no_grad()
    def fit_statistics(self, statistics: Statistics) -> "PNML":
        found = statistics.moments(normalize=True, device=self.device)
        gram = int(found.counts.sum()) * found.around(torch.zeros_like(found.center))
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


class ViM(OnStatistics, ood.ViM):
    """``ViM`` in float64, fitted a chunk at a time."""

    w: Tensor
    b: Tensor
    #: whether the fitted samples lie in the principal subspace, but for rounding errors
    spans_nothing_else: bool = False

    @torch.no_grad()
    def fit_statistics(self, statistics: Statistics) -> "ViM":
        """:meth:`fit_features` on what has been found of the features, perhaps for others too; but
        for one pass over them."""
        z = statistics.features
        principal = self.d if self.d <= z.shape[1] else z.shape[1] // 2
        if principal == z.shape[1]:
            raise InputError(
                f"d is {self.d}, which is all of the features' dimensions; give a smaller one"
            )
        found = statistics.moments(device=self.w.device)
        self.w, self.b = self.w.to(found.means), self.b.to(found.means)
        self.u = -torch.linalg.pinv(self.w) @ self.b
        scatter = found.around(self.u)
        vectors = torch.linalg.eigh(scatter.cpu().double()).eigenvectors
        residual = vectors[:, : z.shape[1] - principal]
        self.principal_subspace = residual.to(scatter).contiguous()
        largest = norms = lengths = 0.0
        for rows, _ in found.chunks():
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


def _vim(parts: Parts) -> ViM:
    width = parts.weight.shape[1]
    principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    return ViM(parts.encode, principal, parts.weight, parts.bias)


def _doubt_of_vim(fitted: Any) -> str | None:
    if not fitted.spans_nothing_else:
        return None
    return (
        "the images that it was fitted on lie in its principal subspace but for rounding errors, "
        "by which the score is divided; fit it on more images, or with fewer dimensions (isomax "
        "calibrate --set d=N, N far below their number)"
    )


ENTRIES: dict[str, Wiring] = {
    "PNML": Wiring(
        PNML,
        "normalised pooled features, in float64",
        "https://github.com/kobybibas/pnml_ood_detection: src/score_utils.py",
        needs_weights,
        build=lambda p: PNML(p.encode, p.classify),
        differs="without the part of the features that leaves the training features' space",
        fit_large=fit_as_it_is,
    ),
    "ViM": Wiring(
        ViM,
        "pooled features, in float64; principal dimensions: 1000 of 2048, 512 of 768, else half",
        "https://github.com/haoqiwang/vim: benchmark.py",
        needs_weights,
        build=_vim,
        fit_large=fit_as_it_is,
        doubt=_doubt_of_vim,
    ),
}
