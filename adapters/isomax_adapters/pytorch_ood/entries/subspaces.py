"""Detectors by the space that the features of the training images span."""

import math
from collections.abc import Iterator
from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import RequiresFittingException
from torch import Tensor
from torch.nn import functional as F

from isomax.mahalanobis import CHUNK, finest_dtype
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, needs_weights
from isomax_adapters.runtime.errors import InputError


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
        lambda p: PNML(p.encode, p.classify),
        "normalised pooled features, in float64",
        "https://github.com/kobybibas/pnml_ood_detection: src/score_utils.py",
        needs_weights,
        differs="without the part of the features that leaves the training features' space",
        fit_large=fit_as_it_is,
    ),
    "ViM": Wiring(
        ViM,
        _vim,
        "pooled features, in float64; principal dimensions: 1000 of 2048, 512 of 768, else half",
        "https://github.com/haoqiwang/vim: benchmark.py",
        needs_weights,
        fit_large=fit_as_it_is,
        doubt=_doubt_of_vim,
    ),
}
