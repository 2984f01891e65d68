"""pytorch-ood's detectors of several layers, wired to a timm model's stages.

They expect a model that is a chain of modules. Here a stage is what timm's
``forward_intermediates`` takes out, whatever the architecture.
"""

from typing import Any

import pytorch_ood.detector as ood
import torch
from torch import Tensor

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


def nac(parts: Parts) -> ood.NACUE:
    """``NACUE`` on the last stages, whose neurons are channels."""
    channels = {stage["num_chs"] for stage in parts.model.feature_info}

    def mean_over_places(z: Tensor) -> Tensor:
        if z.dim() == 4:
            return z.mean(dim=(2, 3) if z.shape[1] in channels else (1, 2))
        return z.mean(dim=1) if z.dim() == 3 else z

    return ood.NACUE(parts.model, parts.stage_modules, feature_reduce=mean_over_places)


class StagesMahalanobis(ood.MultiMahalanobis):
    """``MultiMahalanobis`` on the last stages: one forward pass gives them all."""

    def __init__(self, parts: Parts) -> None:
        super().__init__([parts.model], alpha=[1.0] * parts.stages_count)
        self.stages = parts.stages

    def fit(self, data_loader: Any) -> "StagesMahalanobis":
        """One pass over images with labels of at least 0."""
        batches = [(self._means(x), y) for x, y in data_loader]
        layers = [torch.cat(layer) for layer in zip(*(means for means, _ in batches), strict=True)]
        self.fit_structured(layers, torch.cat([y for _, y in batches]))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Outlier scores of images, :math:`B`."""
        scores: Tensor = self.predict_structured(self._means(x))
        return scores

    @torch.no_grad()
    def _means(self, x: Tensor) -> list[Tensor]:
        device = self.device
        x = x if device is None else x.to(device)
        return [stage.mean(dim=(2, 3)) for stage in self.stages(x)]
