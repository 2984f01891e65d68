"""Every pytorch-ood detector that can work on a model, built by name and wired to its parts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_ood.detector as ood
from pytorch_ood.api import Detector
from torch import nn

import isomax
from isomax_adapters.pytorch_ood.layers import StagesMahalanobis, gram, nac
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


def _needs_maps(parts: Parts) -> str | None:
    if parts.maps_layout:
        return None
    return "needs feature maps, and the model's last features are tokens"


def _needs_stages(parts: Parts) -> str | None:
    return None if parts.stages_count else "timm cannot take this model's stages out"


def _needs_stage_modules(parts: Parts) -> str | None:
    return None if parts.stage_modules else "the stages of the model are no modules of their own"


def _needs_dropout(parts: Parts) -> str | None:
    if any(getattr(layer, "drop_in", False) for layer in parts.classifiers):
        return "scores in training mode, in which a drop-in head scales its logits"
    rates = [getattr(parts.model, "drop_rate", 0.0)]
    for module in parts.model.modules():
        rates += [getattr(module, name, 0.0) for name in ("p", "drop_prob")]
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)
    return None if drops else "needs dropout, and the model has none"


def _needs_a_distance_head(parts: Parts) -> str | None:
    return None if parts.head != "softmax" else "is made for the heads of isomax"


def _same_as_entropic_score(parts: Parts) -> str | None:
    return None if parts.head == "softmax" else "is the same number as EntropicScore"


def _never(reason: str) -> _Wiring:
    def build(parts: Parts) -> Detector:
        raise ValueError(reason)

    return _Wiring(build, lambda parts: reason)


def _vim(parts: Parts) -> Detector:
    # the paper's rule for the width of the principal space
    width = parts.weight.shape[1]
    principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    return ood.ViM(parts.encode, principal, parts.weight, parts.bias)


def _in(layers: Iterable[nn.Module], parts: Parts) -> Callable[[str], bool]:
    """The parameters of some layers, but for single numbers (IsoMax+'s distance scale): their
    gradients, pytorch-ood sums over the whole batch."""
    mine = {id(p) for layer in layers for p in layer.parameters() if p.dim()}
    names = {name for name, p in parts.model.named_parameters() if id(p) in mine}
    return names.__contains__


_WIRINGS: dict[str, _Wiring] = {
    "ASH": _Wiring(lambda p: ood.ASH(p.feature_maps, p.classify_maps), _needs_maps),
    "DICE": _Wiring(lambda p: ood.DICE(p.encode, p.weight, p.bias, p=0.9), _needs_weights),
    "EnergyBased": _Wiring(lambda p: ood.EnergyBased(p.model)),
    "Entropy": _Wiring(lambda p: ood.Entropy(p.model), _same_as_entropic_score),
    "fDBD": _Wiring(lambda p: ood.fDBD(p.encode, p.linear_layer()), _needs_weights),
    "GEN": _Wiring(lambda p: ood.GEN(p.model)),
    "GMM": _Wiring(lambda p: ood.GMM(p.encode)),
    "GradNorm": _Wiring(lambda p: ood.GradNorm(p.model, _in([p.model], p))),
    # of the classifier's gradients only, as OpenOOD does: those of all layers take a copy of the
    # model per image
    "GradUncertainty": _Wiring(lambda p: ood.GradUncertainty(p.model, _in(p.classifiers, p))),
    "Gram": _Wiring(gram, _needs_stages),
    "KLMatching": _Wiring(lambda p: ood.KLMatching(p.model)),
    "KNN": _Wiring(lambda p: ood.KNN(p.encode)),
    "LTS": _Wiring(lambda p: ood.LTS(p.encode, p.classify), _needs_one_classifier),
    "Mahalanobis": _Wiring(lambda p: ood.Mahalanobis(p.encode)),
    "MahalanobisODIN": _Wiring(lambda p: ood.MahalanobisODIN(p.encode)),
    "MaxLogit": _Wiring(lambda p: ood.MaxLogit(p.model)),
    "MaxSoftmax": _Wiring(lambda p: ood.MaxSoftmax(p.model)),
    "MCD": _Wiring(lambda p: ood.MCD(p.model), _needs_dropout),
    "MCM": _never("needs embeddings of the classes' names, from a vision-language model"),
    "MultiMahalanobis": _Wiring(StagesMahalanobis, _needs_stages),
    "NACUE": _Wiring(nac, _needs_stage_modules),
    "NCI": _Wiring(lambda p: ood.NCI(p.encode, p.linear_layer()), _needs_weights),
    "NNGuide": _Wiring(lambda p: ood.NNGuide(p.encode, p.classify), _needs_one_classifier),
    "ODIN": _Wiring(lambda p: ood.ODIN(p.model)),
    "OpenMax": _Wiring(lambda p: ood.OpenMax(p.model)),
    "PNML": _Wiring(lambda p: ood.PNML(p.encode, p.classify), _needs_weights),
    "RankFeat": _Wiring(lambda p: ood.RankFeat(p.feature_maps, p.classify_maps), _needs_maps),
    "ReAct": _Wiring(lambda p: ood.ReAct(p.feature_maps, p.classify_maps), _needs_maps),
    "RMD": _Wiring(lambda p: ood.RMD(p.encode)),
    "SCALE": _Wiring(lambda p: ood.SCALE(p.feature_maps, p.classify_maps), _needs_maps),
    "SHE": _Wiring(lambda p: ood.SHE(p.encode, p.classify), _needs_one_classifier),
    "TemperatureScaling": _Wiring(lambda p: ood.TemperatureScaling(p.model)),
    "ViM": _Wiring(_vim, _needs_weights),
    "VRA": _Wiring(lambda p: ood.VRA(p.feature_maps, p.classify_maps), _needs_maps),
    "WeightedEBO": _never(
        "needs class weights learned with VOSRegLoss; with equal ones it is EnergyBased"
    ),
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


def detectors_for(
    model: nn.Module | Parts, names: Iterable[str] | None = None
) -> dict[str, Detector]:
    """Build detectors for a timm model, not yet fitted.

    Detectors that cannot work on the model are left out; :func:`why_not` says why.

    :param model: a timm model with a linear classifier or one of our heads; put it in evaluation
        mode first
    :param names: which detectors; all of :data:`NAMES` if not given
    :return: the detectors by name, in the order of the names
    :raises ValueError: if a name is unknown, or the model has no classifier
    """
    parts = model if isinstance(model, Parts) else Parts(model)
    reasons = why_not(parts, names)
    return {
        name: _WIRINGS[name].build(parts).to(parts.device)
        for name in _known(names)
        if name not in reasons
    }


def why_not(model: nn.Module | Parts, names: Iterable[str] | None = None) -> dict[str, str]:
    """The detectors that cannot work on a model, with the reason.

    :raises ValueError: if a name is unknown, or the model has no classifier
    """
    parts = model if isinstance(model, Parts) else Parts(model)
    reasons = {name: _WIRINGS[name].obstacle(parts) for name in _known(names)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _known(names: Iterable[str] | None) -> list[str]:
    chosen = list(NAMES if names is None else names)
    if unknown := [name for name in chosen if name not in _WIRINGS]:
        raise ValueError(f"unknown detector {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    return chosen
