"""Detectors of images: of gradients, of several passes, of several layers.

pytorch-ood's of several layers expect a model that is a chain of modules. Here a layer is a stage
that timm's ``forward_intermediates`` takes out, whatever the architecture.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import GradientDetector, StructuredDetector
from torch import Tensor, nn

from isomax import MahalanobisPP
from isomax.moments import OnStatistics, Statistics
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, needs_std


class MahalanobisODIN(OnStatistics, GradientDetector):
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

    def fit_statistics(self, statistics: Statistics) -> "MahalanobisODIN":
        self.distance.fit_statistics(statistics)
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


def _gram(parts: Parts) -> ood.Gram:
    """``Gram`` on the last stages."""
    seen: dict[str, Any] = {}

    def first(x: Tensor) -> Tensor:
        seen["logits"], seen["stages"] = parts.model(x), parts.stages(x)
        stage: Tensor = seen["stages"][0]
        return stage

    later = [lambda _, i=index: seen["stages"][i] for index in range(1, parts.stages_count)]
    return ood.Gram(lambda _: seen["logits"], [first, *later], parts.model.num_classes)


class NACUE(ood.NACUE):
    """pytorch-ood's, which holds on to all that the network computed of its last batch, and where
    it fails leaves its hooks behind, which hold on to all later ones."""

    def fit(self, data_loader: Any) -> "NACUE":
        try:
            super().fit(data_loader)
        finally:
            self._let_go()
        return self

    def predict(self, x: Tensor) -> Tensor:
        try:
            scores: Tensor = super().predict(x)
        finally:
            self._let_go()
        return scores

    def _let_go(self) -> None:
        self._remove_hooks()
        self._captured.clear()


def _nac(parts: Parts) -> ood.NACUE:
    """``NACUE`` on the last stages, whose neurons are channels."""
    channels = {stage["num_chs"] for stage in parts.model.feature_info}

    def mean_over_places(z: Tensor) -> Tensor:
        if z.dim() == 4:
            return z.mean(dim=(2, 3) if z.shape[1] in channels else (1, 2))
        return z.mean(dim=1) if z.dim() == 3 else z

    return NACUE(parts.model, parts.stage_modules, feature_reduce=mean_over_places)


class StagesMahalanobis(StructuredDetector):
    """The sum of the Mahalanobis distances of the last stages, averaged over places.

    One forward pass gives them all.
    """

    info = ood.MultiMahalanobis.info
    requires_fit = True

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.stages = parts.stages
        self.distances = [MahalanobisPP(None, normalize=False) for _ in range(parts.stages_count)]

    def fit(self, data_loader: Any) -> "StagesMahalanobis":
        """One pass over images; labels below 0 are left out."""
        batches = [([z.cpu() for z in self._means(x)], y.cpu()) for x, y in data_loader]
        layers = [torch.cat(layer) for layer in zip(*(means for means, _ in batches), strict=True)]
        return self.fit_structured(layers, torch.cat([y for _, y in batches]))

    def fit_structured(self, zs: list[Tensor], y: Tensor) -> "StagesMahalanobis":
        """
        :param zs: for each stage, :math:`N \\times C_l`
        :param y: labels, :math:`N`
        """
        for distance, z in zip(self.distances, zs, strict=True):
            distance.fit_features(z, y)
        return self

    def predict_structured(self, zs: list[Tensor]) -> Tensor:
        """
        :param zs: for each stage, :math:`B \\times C_l`
        :return: scores, :math:`B`
        """
        pairs = zip(self.distances, zs, strict=True)
        return torch.stack([distance.predict_features(z) for distance, z in pairs]).sum(dim=0)

    def to(self, device: str | torch.device) -> "StagesMahalanobis":
        """Move what was fitted along."""
        super().to(device)
        for distance in self.distances:
            distance.to(device)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Scores of images, :math:`B`."""
        return self.predict_structured(self._means(x))

    @torch.no_grad()
    def _means(self, x: Tensor) -> list[Tensor]:
        x = x if self.device is None else x.to(self.device)
        return [stage.mean(dim=(2, 3)) for stage in self.stages(x)]


def needs_stages(parts: Parts) -> str | None:
    return None if parts.stages_count else "timm cannot take this model's stages out"


def needs_stage_modules(parts: Parts) -> str | None:
    return None if parts.stage_modules else "the stages of the model are no modules of their own"


def needs_dropout(parts: Parts) -> str | None:
    if any(getattr(layer, "drop_in", False) for layer in parts.classifiers):
        return "scores in training mode, in which a drop-in head scales its logits"
    rates = [getattr(parts.model, "drop_rate", 0.0)]
    for module in parts.model.modules():
        rates += [getattr(module, name, 0.0) for name in ("p", "drop_prob")]
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)
    return None if drops else "needs dropout, and the model has none"


def _in(
    layers: Iterable[nn.Module], parts: Parts, least_dimensions: int = 1
) -> Callable[[str], bool]:
    """The parameters of some layers, but for single numbers (IsoMax+'s distance scale): their
    gradients, pytorch-ood sums over the whole batch."""
    mine = {id(p) for layer in layers for p in layer.parameters() if p.dim() >= least_dimensions}
    names = {name for name, p in parts.model.named_parameters() if id(p) in mine}
    return names.__contains__


_NO_FILE = (
    "it takes gradients or several passes, and a file has one forward pass; of those that have, {} "
    "is nearest"
)

ENTRIES: dict[str, Wiring] = {
    "GradNorm": Wiring(
        ood.GradNorm,
        "gradient of the classifier's weights, without its bias; temperature 1",
        "https://github.com/deeplearning-wisc/gradnorm_ood: test_ood.py",
        build=lambda p: ood.GradNorm(p.model, _in(p.classifiers, p, least_dimensions=2)),
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "GradNorm-all": Wiring(
        ood.GradNorm,
        "gradient of all parameters",
        "pytorch_ood.detector.GradNorm, without a filter",
        build=lambda p: ood.GradNorm(p.model, _in([p.model], p)),
        differs="all parameters instead of the classifier's weights",
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "GradUncertainty": Wiring(
        ood.GradUncertainty,
        "gradient of the classifier's parameters",
        "https://arxiv.org/abs/2008.08030",
        # of all layers, they would take a copy of the model per image
        build=lambda p: ood.GradUncertainty(p.model, _in(p.classifiers, p)),
        differs="the sum instead of a classifier trained on the gradients of ID and OOD images",
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "Gram": Wiring(
        ood.Gram,
        "outputs of the last 4 stages; orders 1 to 4",
        "https://github.com/VectorInstitute/gram-ood-detection",
        needs_stages,
        build=_gram,
        differs="stages instead of every convolution, orders up to 4 instead of 10",
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "MahalanobisODIN": Wiring(
        MahalanobisODIN,
        "pooled features, in float64; a step of 0.002 in units of pixels from 0 to 1",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        needs_std,
        build=lambda p: MahalanobisODIN(p.encode, p.std),
        differs="the step is fixed instead of chosen on OOD images",
        fit_large=fit_as_it_is,
        no_file=_NO_FILE.format("MahalanobisPP"),
    ),
    "MCD": Wiring(
        ood.MCD,
        "30 passes with dropout; the variance of the posteriors, averaged over classes",
        "https://arxiv.org/abs/1511.02680",
        needs_dropout,
        build=lambda p: ood.MCD(p.model),
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "MultiMahalanobis": Wiring(
        StagesMahalanobis,
        "outputs of the last 4 stages, averaged over places, in float64; all weigh the same",
        "https://github.com/pokaxpoka/deep_Mahalanobis_detector: lib_generation.py",
        needs_stages,
        build=StagesMahalanobis,
        differs="equal weights instead of a regression on OOD images, no step",
        no_file=_NO_FILE.format("MahalanobisPP"),
    ),
    "NACUE": Wiring(
        NACUE,
        "states of the last 4 stages and their gradient; 50 bins, steepness 100",
        "pytorch_ood.detector.NACUE",
        needs_stage_modules,
        build=_nac,
        differs="geometric bins; https://github.com/BierOne/ood_coverage (nac/coverage.py) has "
        "uniform ones, tuned per layer, and averages states and gradients apart",
        no_file=_NO_FILE.format("EnergyBased"),
    ),
    "ODIN": Wiring(
        ood.ODIN,
        "temperature 1000, a step of 0.0014 in units of pixels from 0 to 1",
        "https://github.com/facebookresearch/odin: code/calData.py",
        needs_std,
        build=lambda p: ood.ODIN(p.model, norm_std=list(p.std)),
        no_file=_NO_FILE.format("EnergyBased"),
    ),
}
