"""Every pytorch-ood detector that can work on a model, built by name and wired to its parts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_ood.detector as ood
from pytorch_ood.api import Detector
from torch import nn

import isomax
from isomax_adapters.pytorch_ood.parts import Parts


@dataclass(frozen=True)
class _Wiring:
    build: Callable[[Parts], Detector]
    obstacle: Callable[[Parts], str | None] = lambda parts: None


def _needs_weights(parts: Parts) -> str | None:
    if parts.linear:
        return None
    if parts.head != "softmax":
        return "needs the weights of a linear classifier, and the model has a distance head"
    return "needs the weights of one linear classifier, and the model has several"


def _needs_one_classifier(parts: Parts) -> str | None:
    return None if len(parts.classifiers) == 1 else "the model has several classifiers"


def _needs_a_distance_head(parts: Parts) -> str | None:
    return None if parts.head != "softmax" else "is made for the heads of isomax"


def _same_as_entropic_score(parts: Parts) -> str | None:
    return None if parts.head == "softmax" else "is the same number as EntropicScore"


_WIRINGS: dict[str, _Wiring] = {
    "DICE": _Wiring(lambda p: ood.DICE(p.encode, p.weight, p.bias, p=0.9), _needs_weights),
    "EnergyBased": _Wiring(lambda p: ood.EnergyBased(p.model)),
    "Entropy": _Wiring(lambda p: ood.Entropy(p.model), _same_as_entropic_score),
    "GEN": _Wiring(lambda p: ood.GEN(p.model)),
    "GMM": _Wiring(lambda p: ood.GMM(p.encode)),
    "GradNorm": _Wiring(lambda p: ood.GradNorm(p.model)),
    "KLMatching": _Wiring(lambda p: ood.KLMatching(p.model)),
    "KNN": _Wiring(lambda p: ood.KNN(p.encode)),
    "LTS": _Wiring(lambda p: ood.LTS(p.encode, p.classify), _needs_one_classifier),
    "Mahalanobis": _Wiring(lambda p: ood.Mahalanobis(p.encode)),
    "MahalanobisODIN": _Wiring(lambda p: ood.MahalanobisODIN(p.encode)),
    "MaxLogit": _Wiring(lambda p: ood.MaxLogit(p.model)),
    "MaxSoftmax": _Wiring(lambda p: ood.MaxSoftmax(p.model)),
    "NNGuide": _Wiring(lambda p: ood.NNGuide(p.encode, p.classify), _needs_one_classifier),
    "ODIN": _Wiring(lambda p: ood.ODIN(p.model)),
    "OpenMax": _Wiring(lambda p: ood.OpenMax(p.model)),
    "RMD": _Wiring(lambda p: ood.RMD(p.encode)),
    "SHE": _Wiring(lambda p: ood.SHE(p.encode, p.classify), _needs_one_classifier),
    "TemperatureScaling": _Wiring(lambda p: ood.TemperatureScaling(p.model)),
    "EntropicScore": _Wiring(lambda p: isomax.EntropicScore(p.model), _needs_a_distance_head),
    "MinimumDistanceScore": _Wiring(
        lambda p: isomax.MinimumDistanceScore(p.model), _needs_a_distance_head
    ),
    "MaxMeanLogitEntropyScore": _Wiring(
        lambda p: isomax.MaxMeanLogitEntropyScore(p.model), _needs_a_distance_head
    ),
}

NAMES = tuple(_WIRINGS)
"""All names that :func:`detectors_for` knows."""


def detectors_for(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Detector]:
    """Build detectors for a timm model, not yet fitted.

    Detectors that cannot work on the model are left out; :func:`why_not` says why.

    :param model: a timm model with a linear classifier or one of our heads; put it in evaluation
        mode first
    :param names: which detectors; all of :data:`NAMES` if not given
    :return: the detectors by name, in the order of the names
    :raises ValueError: if a name is unknown, or the model has no classifier
    """
    parts = Parts(model)
    reasons = why_not(model, names)
    return {name: _WIRINGS[name].build(parts) for name in _known(names) if name not in reasons}


def why_not(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """The detectors that cannot work on a model, with the reason.

    :raises ValueError: if a name is unknown, or the model has no classifier
    """
    parts = Parts(model)
    reasons = {name: _WIRINGS[name].obstacle(parts) for name in _known(names)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _known(names: Iterable[str] | None) -> list[str]:
    chosen = list(NAMES if names is None else names)
    if unknown := [name for name in chosen if name not in _WIRINGS]:
        raise ValueError(f"unknown detector {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    return chosen
