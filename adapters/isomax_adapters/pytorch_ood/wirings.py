"""How each detector is built from the parts of a model, and where that is written.

The plain names are wired as the papers' own code does. Where pytorch-ood's documentation does it
otherwise, that is another name, which says how.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_ood.detector as ood
from pytorch_ood.api import Detector
from torch import nn

import isomax
from isomax_adapters.pytorch_ood.exact import (
    GMM,
    PNML,
    MahalanobisODIN,
    OpenMax,
    TemperatureScaling,
    ViM,
)
from isomax_adapters.pytorch_ood.layers import StagesMahalanobis, gram, nac
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.pooled import PooledASH, PooledReAct, PooledSCALE, PooledVRA
from isomax_adapters.runtime.errors import InputError


@dataclass(frozen=True)
class Wiring:
    """A detector on the parts of a model."""

    build: Callable[[Parts], Detector]
    how: str  #: what it is given, and its settings
    source: str  #: where that is written: the paper, or the code of its authors
    obstacle: Callable[[Parts], str | None] = lambda parts: None  #: why it cannot be built
    differs: str = ""  #: in what it is not the paper's
    held_out: bool = False  #: the paper fits it on ID images that the model was not trained on


# -- Obstacles -----------------------------------------------------------------------------------


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


def _needs_std(parts: Parts) -> str | None:
    if len(parts.std) == parts.channels:
        return None
    return (
        f"needs the standard deviation of each channel, and the model's preprocessing has "
        f"{len(parts.std)} for {parts.channels} channels; give Parts(model, std=...)"
    )


def _needs_dropout(parts: Parts) -> str | None:
    if any(getattr(layer, "drop_in", False) for layer in parts.classifiers):
        return "scores in training mode, in which a drop-in head scales its logits"
    rates = [getattr(parts.model, "drop_rate", 0.0)]
    for module in parts.model.modules():
        rates += [getattr(module, name, 0.0) for name in ("p", "drop_prob")]
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)
    return None if drops else "needs dropout, and the model has none"


def _needs_a_distance_head(parts: Parts) -> str | None:
    return None if parts.head != "softmax" else "made for the heads of isomax"


def _same_as_entropic_score(parts: Parts) -> str | None:
    return None if parts.head == "softmax" else "the same number as EntropicScore"


def _never(reason: str, source: str) -> Wiring:
    def build(parts: Parts) -> Detector:
        raise InputError(reason)

    return Wiring(build, f"not built: {reason}", source, lambda parts: reason)


# -- Parts that take more than a line ------------------------------------------------------------


def _vim(parts: Parts) -> Detector:
    width = parts.weight.shape[1]
    principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    return ViM(parts.encode, principal, parts.weight, parts.bias)


def _in(
    layers: Iterable[nn.Module], parts: Parts, least_dimensions: int = 1
) -> Callable[[str], bool]:
    """The parameters of some layers, but for single numbers (IsoMax+'s distance scale): their
    gradients, pytorch-ood sums over the whole batch."""
    mine = {id(p) for layer in layers for p in layer.parameters() if p.dim() >= least_dimensions}
    names = {name for name, p in parts.model.named_parameters() if id(p) in mine}
    return names.__contains__


# -- The table -----------------------------------------------------------------------------------

WIRINGS: dict[str, Wiring] = {
    "ASH": Wiring(
        lambda p: PooledASH(p.encode, p.classify),
        "pooled features; ASH-S, 90% of them set to zero",
        "https://github.com/andrijazz/ash: models/resnet_imagenet.py, config/imagenet_config.yml",
        _needs_one_classifier,
    ),
    "ASH-maps": Wiring(
        lambda p: ood.ASH(p.feature_maps, p.classify_maps),
        "feature maps before pooling; ASH-S, 65% of their values set to zero",
        "pytorch_ood.detector.ASH",
        _needs_maps,
        differs="maps instead of pooled features",
    ),
    "DICE": Wiring(
        lambda p: ood.DICE(p.encode, p.weight, p.bias, p=0.9),
        "pooled features; 90% of the classifier's weights set to zero",
        "https://github.com/deeplearning-wisc/dice: models/route.py",
        _needs_weights,
    ),
    "EnergyBased": Wiring(
        lambda p: ood.EnergyBased(p.model),
        "logits; temperature 1",
        "https://github.com/weitliu/energy_ood",
    ),
    "Entropy": Wiring(
        lambda p: ood.Entropy(p.model),
        "logits",
        "pytorch_ood.detector.Entropy",
        _same_as_entropic_score,
    ),
    "fDBD": Wiring(
        lambda p: ood.fDBD(p.encode, p.linear_layer()),
        "pooled features and the classifier's weights",
        "https://github.com/litianliu/fDBD-OOD: run_imagenet.py",
        _needs_weights,
    ),
    "GEN": Wiring(
        lambda p: ood.GEN(p.model, M=100),
        "logits; gamma 0.1, the 100 largest posteriors",
        "https://github.com/XixiLiu95/GEN: benchmark.py",
        differs="posteriors are clamped to [1e-7, 1 - 1e-7]",
    ),
    "GMM": Wiring(
        lambda p: GMM(p.encode),
        "pooled features, in float64; a Gaussian per class, a ridge of 1e-6 of the variance",
        "pytorch_ood.detector.GMM",
        differs="the ridge is a share of the variance instead of 1e-6 itself",
    ),
    "GradNorm": Wiring(
        lambda p: ood.GradNorm(p.model, _in(p.classifiers, p, least_dimensions=2)),
        "gradient of the classifier's weights, without its bias; temperature 1",
        "https://github.com/deeplearning-wisc/gradnorm_ood: test_ood.py",
    ),
    "GradNorm-all": Wiring(
        lambda p: ood.GradNorm(p.model, _in([p.model], p)),
        "gradient of all parameters",
        "pytorch_ood.detector.GradNorm, without a filter",
        differs="all parameters instead of the classifier's weights",
    ),
    "GradUncertainty": Wiring(
        # of all layers, they would take a copy of the model per image
        lambda p: ood.GradUncertainty(p.model, _in(p.classifiers, p)),
        "gradient of the classifier's parameters",
        "https://arxiv.org/abs/2008.08030",
        differs="the sum instead of a classifier trained on the gradients of ID and OOD images",
    ),
    "Gram": Wiring(
        gram,
        "outputs of the last 4 stages; orders 1 to 4",
        "https://github.com/VectorInstitute/gram-ood-detection",
        _needs_stages,
        differs="stages instead of every convolution, orders up to 4 instead of 10",
    ),
    "KLMatching": Wiring(
        lambda p: ood.KLMatching(p.model),
        "logits; a typical posterior per predicted class",
        "https://arxiv.org/abs/1911.11132",
        held_out=True,
    ),
    "KNN": Wiring(
        lambda p: ood.KNN(p.encode),
        "normalised pooled features; the 50th neighbour",
        "https://github.com/deeplearning-wisc/knn-ood: run_cifar.py",
        differs="the authors take the 1000th neighbour for ImageNet",
    ),
    "LTS": Wiring(
        lambda p: ood.LTS(p.encode, p.classify),
        "pooled features; the largest 5% of them",
        "https://github.com/andrijazz/lts: lts.py",
        _needs_one_classifier,
    ),
    "Mahalanobis": Wiring(
        lambda p: isomax.MahalanobisPP(p.encode, normalize=False),
        "pooled features, in float64",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        differs="a ridge instead of a pseudo-inverse where the covariance is singular",
    ),
    "MahalanobisODIN": Wiring(
        lambda p: MahalanobisODIN(p.encode, p.std),
        "pooled features, in float64; a step of 0.002 in units of pixels from 0 to 1",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        _needs_std,
        differs="the step is fixed instead of chosen on OOD images",
    ),
    "MahalanobisPP": Wiring(
        lambda p: isomax.MahalanobisPP(p.encode),
        "normalised pooled features, in float64",
        "https://github.com/mueller-mp/maha-norm: README.md",
        differs="a ridge instead of a pseudo-inverse where the covariance is singular",
    ),
    "MaxLogit": Wiring(
        lambda p: ood.MaxLogit(p.model), "logits", "https://arxiv.org/abs/1911.11132"
    ),
    "MaxSoftmax": Wiring(
        lambda p: ood.MaxSoftmax(p.model), "logits", "https://arxiv.org/abs/1610.02136"
    ),
    "MCD": Wiring(
        lambda p: ood.MCD(p.model),
        "30 passes with dropout; the variance of the posteriors, averaged over classes",
        "https://arxiv.org/abs/1511.02680",
        _needs_dropout,
    ),
    "MCM": _never(
        "needs embeddings of the classes' names, from a vision-language model",
        "https://arxiv.org/abs/2211.13445",
    ),
    "MultiMahalanobis": Wiring(
        StagesMahalanobis,
        "outputs of the last 4 stages, averaged over places, in float64; all weigh the same",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        _needs_stages,
        differs="equal weights instead of a regression on OOD images, no step",
    ),
    "NACUE": Wiring(
        nac,
        "states of the last 4 stages and their gradient; 50 bins, steepness 100",
        "pytorch_ood.detector.NACUE",
        _needs_stage_modules,
        differs="geometric bins; https://github.com/BierOne/ood_coverage (nac/coverage.py) has "
        "uniform ones, tuned per layer, and averages states and gradients apart",
    ),
    "NCI": Wiring(
        lambda p: ood.NCI(p.encode, p.linear_layer()),
        "pooled features and the classifier's weights; the norm weighs 0",
        "https://arxiv.org/abs/2311.01479",
        _needs_weights,
        differs="the weight of the norm is 0 unless it is tuned",
    ),
    "NNGuide": Wiring(
        lambda p: ood.NNGuide(p.encode, p.classify),
        "pooled features; 10 neighbours among all training images",
        "https://github.com/roomo7time/nnguide: ood_detectors/nnguide.py",
        _needs_one_classifier,
        differs="the authors take a hundredth of ImageNet's training images",
    ),
    "ODIN": Wiring(
        lambda p: ood.ODIN(p.model, norm_std=list(p.std)),
        "temperature 1000, a step of 0.0014 in units of pixels from 0 to 1",
        "https://github.com/facebookresearch/odin: code/calData.py",
        _needs_std,
    ),
    "OpenMax": Wiring(
        lambda p: OpenMax(p.model),
        "logits; Euclidean distance, tails of 25, the 10 largest logits revised",
        "https://arxiv.org/abs/1511.06233, Algorithms 1 and 2",
        differs="https://github.com/abhijitbendale/OSDN has tails of 20, adds the cosine distance, "
        "and fits on images classified right",
    ),
    "PNML": Wiring(
        lambda p: PNML(p.encode, p.classify),
        "normalised pooled features, in float64",
        "https://github.com/kobybibas/pnml_ood_detection: src/score_utils.py",
        _needs_weights,
        differs="without the part of the features that leaves the training features' space",
    ),
    "RankFeat": Wiring(
        lambda p: ood.RankFeat(p.feature_maps, p.classify_maps),
        "last feature maps, before pooling",
        "https://github.com/KingJamesSong/RankFeat: test_ood_resnetv2.py",
        _needs_maps,
        differs="the last block alone, not its mean with the one before",
    ),
    "ReAct": Wiring(
        lambda p: PooledReAct(p.encode, p.classify),
        "pooled features, cut off at the 90th percentile of all of them",
        "https://github.com/deeplearning-wisc/react: compute_threshold.py, models/resnet.py",
        _needs_one_classifier,
    ),
    "ReAct-maps": Wiring(
        lambda p: ood.ReAct(p.feature_maps, p.classify_maps),
        "feature maps before pooling, cut off at the 90th percentile of all their values",
        "pytorch_ood.detector.ReAct",
        _needs_maps,
        differs="maps instead of pooled features",
    ),
    "RMD": Wiring(
        lambda p: isomax.RMDPP(p.encode, normalize=False),
        "pooled features, in float64",
        "https://arxiv.org/abs/2106.09022",
        differs="one ridge for both covariances where they are singular",
    ),
    "RMDPP": Wiring(
        lambda p: isomax.RMDPP(p.encode),
        "normalised pooled features, in float64",
        "https://github.com/mueller-mp/maha-norm: NINCO/detection_methods.py",
        differs="one ridge for both covariances where they are singular",
    ),
    "SCALE": Wiring(
        lambda p: PooledSCALE(p.encode, p.classify),
        "pooled features; scaled by the largest 15% of them",
        "https://github.com/kai422/SCALE: openood/networks/scale_net.py, "
        "configs/postprocessors/scale.yml",
        _needs_one_classifier,
    ),
    "SCALE-maps": Wiring(
        lambda p: ood.SCALE(p.feature_maps, p.classify_maps),
        "feature maps before pooling; scaled by the largest 35% of their values",
        "pytorch_ood.detector.SCALE",
        _needs_maps,
        differs="maps instead of pooled features",
    ),
    "SHE": Wiring(
        lambda p: ood.SHE(p.encode, p.classify),
        "pooled features; the mean of those classified right",
        "https://github.com/zjs975584714/SHE_ood_detection: generate_stored_pattern.py",
        _needs_one_classifier,
    ),
    "TemperatureScaling": Wiring(
        lambda p: TemperatureScaling(p.model),
        "logits; the temperature of the least negative log-likelihood",
        "https://arxiv.org/abs/1706.04599, Section 4.2",
        held_out=True,
    ),
    "ViM": Wiring(
        _vim,
        "pooled features, in float64; principal dimensions: 1000 of 2048, 512 of 768, else half",
        "https://github.com/haoqiwang/vim: benchmark.py",
        _needs_weights,
    ),
    "VRA": Wiring(
        lambda p: PooledVRA(p.encode, p.classify),
        "pooled features; set to zero below their 60th percentile, cut off at their 95th",
        "https://github.com/zeroQiaoba/VRA: models/densenet.py, readme.md",
        _needs_one_classifier,
    ),
    "VRA-maps": Wiring(
        lambda p: ood.VRA(p.feature_maps, p.classify_maps),
        "feature maps before pooling, clipped to the 1st and 99th percentile of each value",
        "pytorch_ood.detector.VRA",
        _needs_maps,
        differs="maps instead of pooled features, and raised to the lower percentile, not zeroed",
    ),
    "WeightedEBO": _never(
        "needs class weights learned with VOSRegLoss; with equal ones it is EnergyBased",
        "https://arxiv.org/abs/2202.01197",
    ),
    "EntropicScore": Wiring(
        lambda p: isomax.EntropicScore(p.model),
        "logits",
        isomax.EntropicScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MinimumDistanceScore": Wiring(
        lambda p: isomax.MinimumDistanceScore(p.model),
        "logits",
        isomax.MinimumDistanceScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "MaxMeanLogitEntropyScore": Wiring(
        lambda p: isomax.MaxMeanLogitEntropyScore(p.model),
        "logits",
        isomax.MaxMeanLogitEntropyScore.info.paper.url,
        _needs_a_distance_head,
    ),
    "PostHocIsoMax": Wiring(
        lambda p: isomax.PostHocIsoMax(p.encode),
        "pooled features; prototypes trained on them from zero",
        isomax.PostHocIsoMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
    ),
    "PostHocIsoMaxPlus": Wiring(
        lambda p: isomax.PostHocIsoMaxPlus(p.encode),
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocIsoMaxPlus.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
    ),
    "PostHocDisMax": Wiring(
        lambda p: isomax.PostHocDisMax(p.encode),
        "normalised pooled features; prototypes at the class means",
        isomax.PostHocDisMax.info.paper.url,
        differs="the head is put on the features of a model that stays as it is",
    ),
}
