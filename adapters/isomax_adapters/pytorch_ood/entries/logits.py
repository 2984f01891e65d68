"""Detectors of logits."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import RequiresFittingException
from pytorch_ood.detector.openmax.libnotmr import LibNotMR
from pytorch_ood.detector.openmax.numpy import OpenMax as NumpyOpenMax
from torch import Tensor, nn

from isomax import fit_temperature
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.wiring import (
    Outputs,
    Wiring,
    chunks,
    fit_as_it_is,
    never,
    put_back,
)


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


class _Entropy(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()

    def forward(self, logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)


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


def _fit_kl_matching(detector: Any, outputs: Outputs) -> None:
    classes = outputs.logits.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    for (logits,) in chunks(outputs.logits):
        posteriors = logits.softmax(dim=1)
        predicted = posteriors.argmax(dim=1)
        sums.index_add_(0, predicted, posteriors.double())
        counts += torch.bincount(predicted, minlength=classes)
    there = counts > 0
    # a mean of posteriors that have their largest value at one class has it there too
    means = (sums[there] / counts[there, None]).log()
    detector.fit_logits(means.float(), torch.zeros(len(means), dtype=torch.long))


def _kl_matching(detector: Any) -> Mapping[str, Any]:
    return vars(detector) | {f"dists.{k}": dist for k, dist in detector.dists.items()}


def _put_kl_matching(detector: Any, state: Mapping[str, Any]) -> None:
    dists = put_back(detector, state).get("dists", {})
    ordered = sorted(dists, key=int)  # of classes
    detector.dists = nn.ParameterDict(
        {key: nn.Parameter(dists[key], requires_grad=False) for key in ordered}
    )


_WEIBULL = ("c", "scale", "min_val")  # what LibNotMR fits


def _open_max(detector: Any) -> Mapping[str, Any]:
    state, fitted = dict(vars(detector)), detector._openmax
    del state["_openmax"]
    if fitted is None:
        return state
    labels = sorted(fitted.distributions)
    weibulls = [fitted.distributions[label] for label in labels]
    return state | {
        "fitted.labels": np.array(labels),
        "fitted.centers": np.stack([fitted.centers[label] for label in labels]),
        **{f"fitted.{name}": np.array([getattr(w, name) for w in weibulls]) for name in _WEIBULL},
    }


def _put_open_max(detector: Any, state: Mapping[str, Any]) -> None:
    fitted = put_back(detector, state).get("fitted")
    if fitted is None:
        return
    found = {key: value.numpy() for key, value in fitted.items()}
    classes = found["centers"].shape[1]
    made = NumpyOpenMax(detector.tailsize, min(classes, detector.alpha), detector.euclid_weight)
    made.n_dims, made.is_fitted = classes, True
    for place, label in enumerate(found["labels"]):
        made.centers[label] = found["centers"][place]
        made.distributions[label] = LibNotMR(detector.tailsize)
        vars(made.distributions[label]).update({name: found[name][place] for name in _WEIBULL})
    detector._openmax = made


def same_as_entropic_score(parts: Parts) -> str | None:
    return None if parts.head == "softmax" else "the same number as EntropicScore"


ENTRIES: dict[str, Wiring] = {
    "EnergyBased": Wiring(
        ood.EnergyBased,
        "logits; temperature 1",
        "https://github.com/weitliu/energy_ood",
    ),
    "Entropy": Wiring(
        ood.Entropy,
        "logits",
        "pytorch_ood.detector.Entropy",
        same_as_entropic_score,
        network=_Entropy,
    ),
    "GEN": Wiring(
        ood.GEN,
        "logits; gamma 0.1, the 100 largest posteriors",
        "https://github.com/XixiLiu95/GEN: benchmark.py",
        build=lambda p: ood.GEN(p.model, M=100),
        differs="posteriors are clamped to [1e-7, 1 - 1e-7]",
    ),
    "KLMatching": Wiring(
        ood.KLMatching,
        "logits; a typical posterior per predicted class",
        "https://arxiv.org/abs/1911.11132",
        held_out=True,
        fit_large=_fit_kl_matching,
        state=_kl_matching,
        restore=_put_kl_matching,
        network=_KLMatching,
    ),
    "MaxLogit": Wiring(ood.MaxLogit, "logits", "https://arxiv.org/abs/1911.11132"),
    "MaxSoftmax": Wiring(
        ood.MaxSoftmax,
        "logits",
        "https://arxiv.org/abs/1610.02136",
    ),
    "MCM": never(
        ood.MCM,
        "needs embeddings of the classes' names, from a vision-language model",
        "https://arxiv.org/abs/2211.13445",
    ),
    "OpenMax": Wiring(
        OpenMax,
        "logits; Euclidean distance, tails of 25, the 10 largest logits revised",
        "https://arxiv.org/abs/1511.06233, Algorithms 1 and 2",
        differs="https://github.com/abhijitbendale/OSDN has tails of 20, adds the cosine distance, "
        "and fits on images classified right",
        fit_large=fit_as_it_is,
        state=_open_max,
        restore=_put_open_max,
        network=_OpenMax,
    ),
    "TemperatureScaling": Wiring(
        TemperatureScaling,
        "logits; the temperature of the least negative log-likelihood",
        "https://arxiv.org/abs/1706.04599, Section 4.2",
        held_out=True,
        fit_large=fit_as_it_is,
    ),
    "WeightedEBO": never(
        ood.WeightedEBO,
        "needs class weights learned with VOSRegLoss; with equal ones it is EnergyBased",
        "https://arxiv.org/abs/2202.01197",
    ),
}
