"""Fitted detectors as networks that torch can export: logits, features or feature maps to scores.

Most are exported as they are. Those whose code a graph cannot hold (control flow, scikit-learn,
numpy, passes over a distance matrix) are written again here, as what they compute.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector
from torch import Tensor, nn
from torch.nn import functional as F

import isomax
from isomax_adapters.pytorch_ood import Parts, detectors_for

LARGEST = 2**31 - 2**24  # bytes of an ONNX file

KINDS: dict[type, str] = {
    LogitsDetector: "logits",
    FeaturesDetector: "features",
    FeatureMapsDetector: "feature_maps",
}
_NOT: dict[str, str] = {
    "RankFeat": "it takes a singular value decomposition of each image's maps, which ONNX lacks; "
    "ReAct or ASH rectify features too",
}
_BANKS = ("KNN", "NNGuide")


def kind_of(detector: Detector) -> str | None:
    """``logits``, ``features`` or ``feature_maps``: what a detector scores; ``None`` if that is
    the image itself."""
    return next((kind for base, kind in KINDS.items() if isinstance(detector, base)), None)


def why_not_exported(name: str, detector: Detector) -> str | None:
    """Why a detector cannot be part of a file, and which can be in its place; ``None`` if it can,
    as far as that is known before it is fitted."""
    if name in _NOT:
        return f"{name} cannot be exported: {_NOT[name]}"
    if kind_of(detector) is None:
        nearest = "MahalanobisPP" if "Mahalanobis" in name else "EnergyBased"
        return (
            f"{name} cannot be exported: it takes gradients or several passes, and a file has one "
            f"forward pass; of those that have, {nearest} is nearest"
        )
    return None


def why_too_large(name: str, size: int, network: int) -> str | None:
    """Why a fitted detector does not fit into a file; ``None`` if it does.

    :param size: of the detector, bytes
    :param network: of the network beside it
    """
    if size + network <= LARGEST:
        return None
    instead = "compare with fewer images (--bank)" if name in _BANKS else "MahalanobisPP is smaller"
    return (
        f"{name} cannot be exported: it holds {size / 1e9:.1f} GB beside {network / 1e9:.2f} of "
        f"the network, and a file has at most 2; {instead}"
    )


def why_network_too_large(model: nn.Module) -> str | None:
    """Why a network alone does not fit into a file; ``None`` if it does."""
    size = _bytes_of(model)
    if size <= LARGEST:
        return None
    return (
        f"the network cannot be exported: it holds {size / 1e9:.2f} GB, and a file has at most "
        f"{LARGEST / 1e9:.2f}; choose a smaller architecture"
    )


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def obstacle_to_export(name: str, parts: Parts, input_size: tuple[int, int, int]) -> str | None:
    """Why no file of this model can hold a detector, before that is fitted."""
    (detector,) = detectors_for(parts, [name]).values()
    reason = why_not_exported(name, detector) or why_network_too_large(parts.model)
    if reason or name != "GMM":
        return reason
    # a matrix for each class, in float64
    with torch.no_grad():
        width = parts.encode(torch.zeros(1, *input_size, device=parts.device)).shape[1]
    return why_too_large(name, 8 * parts.num_classes * width**2, _bytes_of(parts.model))


def scorer_of(detector: Any) -> nn.Module:
    """A network from what a detector scores to its scores, float32 ``[N]``."""
    for base, make in _WRITTEN.items():
        if isinstance(detector, base):
            return make(detector)
    return _AsItIs(detector)


class _AsItIs(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self._predict: Callable[[Tensor], Tensor] = getattr(
            detector, f"predict_{kind_of(detector)}"
        )

    def forward(self, given: Tensor) -> Tensor:
        return self._predict(given).float()


class _Entropy(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()

    def forward(self, logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)


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
        bank = torch.from_numpy(np.asarray(detector.knn._fit_X)).float()
        self.register_buffer("bank", bank)
        self.register_buffer("half_square", (bank * bank).sum(dim=1) / 2)

    def forward(self, features: Tensor) -> Tensor:
        z = features.float()
        z = F.normalize(z, dim=1) if self.normalize else z
        nearness = z @ self.bank.T - self.half_square
        place = nearness.topk(self.k, dim=1).indices[:, self.k - 1]
        return (z - self.bank[place]).norm(dim=1)


class _DICE(nn.Module):
    """One product with the masked weights, not one of images, classes and features added up, which
    takes as much memory and which OpenVINO rewrites wrongly."""

    weight: Tensor
    bias: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.register_buffer("weight", detector.masked_w.detach().float().cpu())
        self.register_buffer("bias", detector.bias.detach().float().cpu())
        self.detector = detector.detector

    def forward(self, features: Tensor) -> Tensor:
        score: Tensor = self.detector(features @ self.weight.T + self.bias)
        return score.float()


class _NCI(nn.Module):
    mean: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.alpha = detector.alpha
        self.register_buffer("mean", detector.global_mean.float().cpu())
        self.register_buffer("weight", detector.head.weight.detach().float().cpu())
        self.register_buffer("bias", detector.head.bias.detach().float().cpu())

    def forward(self, features: Tensor) -> Tensor:
        predicted = (features @ self.weight.T + self.bias).argmax(dim=1)
        away = features - self.mean
        # not divided by the length of the weights, as pytorch-ood has it
        score = -(away * self.weight[predicted]).sum(dim=1) / away.norm(dim=1)
        return score - self.alpha * features.abs().sum(dim=1) if self.alpha > 0 else score


class _OpenMax(nn.Module):
    labels: Tensor
    centers: Tensor
    shape: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        fitted = detector._openmax
        self.alpha, self.euclid_weight = float(fitted.alpha), float(fitted.euclid_weight)
        self.ranks = math.ceil(self.alpha)
        labels = sorted(fitted.distributions)
        weibulls = [fitted.distributions[label] for label in labels]
        self.register_buffer("labels", torch.tensor(labels))
        centers = np.stack([fitted.centers[label] for label in labels])
        self.register_buffer("centers", torch.from_numpy(centers).double())
        for name, values in (
            ("shape", [w.c for w in weibulls]),
            ("scale", [w.scale for w in weibulls]),
            ("shift", [w.translation - float(w.min_val) for w in weibulls]),
        ):
            self.register_buffer(name, torch.tensor(np.array(values, dtype=float)))

    def forward(self, logits: Tensor) -> Tensor:
        z = logits.double()
        square, products = (z * z).sum(dim=1, keepdim=True), z @ self.centers.T
        centers_square = (self.centers * self.centers).sum(dim=1)
        away = (square - 2 * products + centers_square).clamp(min=0).sqrt()
        if self.euclid_weight != 1:
            cosine = products / (square * centers_square).sqrt()
            away = self.euclid_weight * away + (1 - self.euclid_weight) * (1 - cosine)
        beyond = ((away + self.shift) / self.scale).clamp(min=0)
        weibull = 1 - torch.exp(-(beyond**self.shape))
        too_far = torch.ones_like(z).index_copy(1, self.labels, weibull)
        # only the largest logits are revised, the more the larger they are
        ranked = min(self.ranks, z.shape[1])
        largest = z.topk(ranked, dim=1).indices
        weights = 1 - torch.arange(ranked, dtype=z.dtype) / self.alpha
        # added, not expanded: the exporter would keep the number of images of its example
        weights = torch.zeros_like(largest, dtype=z.dtype) + weights
        ranking = torch.zeros_like(z).scatter(1, largest, weights)
        revised = z * too_far * ranking
        unknown = revised.sum(dim=1, keepdim=True)
        return torch.cat([unknown, z - revised], dim=1).softmax(dim=1)[:, 0].float()


class _KLMatching(nn.Module):
    log_dists: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        dists = torch.stack([d.detach() for d in detector.dists.values()])
        lowest = torch.finfo(dists.dtype).min
        self.register_buffer("log_dists", dists.log().nan_to_num(neginf=lowest))

    def forward(self, logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        return ((p * log_p).sum(dim=1, keepdim=True) - p @ self.log_dists.T).amin(dim=1)


_WRITTEN: dict[type, Callable[[Any], nn.Module]] = {
    ood.Entropy: _Entropy,
    isomax.MahalanobisPP: _Mahalanobis,  # RMD++ and the plain ones are of its kind
    ood.KNN: _KNN,
    ood.DICE: _DICE,
    ood.NCI: _NCI,
    ood.OpenMax: _OpenMax,
    ood.KLMatching: _KLMatching,
}
