"""Distances of pooled features to classes and to neighbours."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_ood.detector as ood
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn import functional as F

import isomax
from isomax.mahalanobis import RIDGE
from isomax.moments import finest_dtype
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, needs_one_classifier, put_back
from isomax_adapters.runtime.errors import InputError


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
        device = self.device or z.device
        like = torch.empty(0, dtype=finest_dtype(device), device=device)
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


class _Mahalanobis(nn.Module):
    """In float64, as it is fitted: one matrix product, then differences to the class means."""

    center: Tensor
    whitening: Tensor
    means: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.normalize = detector.normalize
        self.register_buffer("center", detector.center.double().cpu())
        self.register_buffer("whitening", detector.whitening.double().cpu())
        self.register_buffer(
            "means", (detector.mu - detector.center).double().cpu() @ self.whitening
        )
        background = getattr(detector, "background_whitening", None)
        self.background = None if background is None else nn.Buffer(background.double().cpu())

    def forward(self, features: Tensor) -> Tensor:
        z = features.double()
        z = F.normalize(z, dim=1) if self.normalize else z
        z = z - self.center
        white = z @ self.whitening
        square = (white * white).sum(dim=1, keepdim=True)
        products = white @ self.means.T
        distances = square - 2 * products + (self.means * self.means).sum(dim=1)
        nearest = distances.amin(dim=1)
        if self.background is not None:
            around = z @ self.background
            nearest = nearest - (around * around).sum(dim=1)
        return nearest.float()


class _KNN(nn.Module):
    """The k-th largest product with the bank, and then the distance to that sample itself."""

    bank: Tensor
    half_square: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.k, self.normalize = detector.k, detector.normalize
        bank = torch.as_tensor(_knn(detector)["knn"]).float()
        self.register_buffer("bank", bank)
        self.register_buffer("half_square", (bank * bank).sum(dim=1) / 2)

    def forward(self, features: Tensor) -> Tensor:
        z = features.float()
        z = F.normalize(z, dim=1) if self.normalize else z
        nearness = z @ self.bank.T - self.half_square
        place = nearness.topk(self.k, dim=1).indices[:, self.k - 1]
        return (z - self.bank[place]).norm(dim=1)


def _knn(detector: Any) -> Mapping[str, Any]:
    state = dict(vars(detector))
    found = state.pop("knn")
    return state | {"knn": found._fit_X} if hasattr(found, "_fit_X") else state


def _put_knn(detector: Any, state: Mapping[str, Any]) -> None:
    rest = dict(state)
    if (bank := rest.pop("knn", None)) is not None:
        detector.knn = clone(detector.knn).fit(torch.as_tensor(bank).numpy())
    put_back(detector, rest)


ENTRIES: dict[str, Wiring] = {
    "GMM": Wiring(
        GMM,
        "pooled features, in float64; a Gaussian per class, a ridge of 1e-6 of the variance",
        "pytorch_ood.detector.GMM",
        differs="the ridge is a share of the variance instead of 1e-6 itself",
        fit_large=fit_as_it_is,
        held=lambda classes, width: 8 * classes * width**2,  # a matrix for each class
    ),
    "KNN": Wiring(
        ood.KNN,
        "normalised pooled features; the 50th neighbour",
        "https://github.com/deeplearning-wisc/knn-ood: run_cifar.py",
        differs="the authors take the 1000th neighbour for ImageNet",
        state=_knn,
        restore=_put_knn,
        bank="knn",
        network=_KNN,
    ),
    "Mahalanobis": Wiring(
        isomax.MahalanobisPP,
        "pooled features, in float64",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        build=lambda p: isomax.MahalanobisPP(p.encode, normalize=False),
        differs="a ridge instead of a pseudo-inverse where the covariance is singular",
        fit_large=fit_as_it_is,
        network=_Mahalanobis,
    ),
    "MahalanobisPP": Wiring(
        isomax.MahalanobisPP,
        "normalised pooled features, in float64",
        "https://github.com/mueller-mp/maha-norm: README.md",
        differs="a ridge instead of a pseudo-inverse where the covariance is singular",
        fit_large=fit_as_it_is,
        network=_Mahalanobis,
    ),
    "NNGuide": Wiring(
        ood.NNGuide,
        "pooled features; 10 neighbours among all training images",
        "https://github.com/roomo7time/nnguide: ood_detectors/nnguide.py",
        needs_one_classifier,
        build=lambda p: ood.NNGuide(p.encode, p.classify),
        differs="the authors take a hundredth of ImageNet's training images",
        bank="_scaled_features",
    ),
    "RMD": Wiring(
        isomax.RMDPP,
        "pooled features, in float64",
        "https://arxiv.org/abs/2106.09022",
        build=lambda p: isomax.RMDPP(p.encode, normalize=False),
        differs="one ridge for both covariances where they are singular",
        fit_large=fit_as_it_is,
        network=_Mahalanobis,
    ),
    "RMDPP": Wiring(
        isomax.RMDPP,
        "normalised pooled features, in float64",
        "https://github.com/mueller-mp/maha-norm: NINCO/detection_methods.py",
        differs="one ridge for both covariances where they are singular",
        fit_large=fit_as_it_is,
        network=_Mahalanobis,
    ),
}
