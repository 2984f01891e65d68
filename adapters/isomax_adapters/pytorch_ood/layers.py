"""pytorch-ood's detectors of several layers, wired to a timm model's stages.

They expect a model that is a chain of modules. Here a stage is what timm's
``forward_intermediates`` takes out, whatever the architecture.
"""

from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import StructuredDetector
from torch import Tensor

from isomax import MahalanobisPP
from isomax_adapters.pytorch_ood.parts import Parts


def gram(parts: Parts) -> ood.Gram:
    """``Gram`` on the last stages."""
    seen: dict[str, Any] = {}

    def first(x: Tensor) -> Tensor:
        seen["logits"], seen["stages"] = parts.model(x), parts.stages(x)
        stage: Tensor = seen["stages"][0]
        return stage

    later = [lambda _, i=index: seen["stages"][i] for index in range(1, parts.stages_count)]
    return ood.Gram(lambda _: seen["logits"], [first, *later], parts.model.num_classes)


class _NACUE(ood.NACUE):
    """pytorch-ood's, which holds on to all that the network computed of its last batch, and where
    it fails leaves its hooks behind, which hold on to all later ones."""

    def fit(self, data_loader: Any) -> "_NACUE":
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


def nac(parts: Parts) -> ood.NACUE:
    """``NACUE`` on the last stages, whose neurons are channels."""
    channels = {stage["num_chs"] for stage in parts.model.feature_info}

    def mean_over_places(z: Tensor) -> Tensor:
        if z.dim() == 4:
            return z.mean(dim=(2, 3) if z.shape[1] in channels else (1, 2))
        return z.mean(dim=1) if z.dim() == 3 else z

    return _NACUE(parts.model, parts.stage_modules, feature_reduce=mean_over_places)


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
