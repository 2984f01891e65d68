"""Detectors of pooled features that know the weights of the classifier."""

from typing import Any

import pytorch_ood.detector as ood
import torch
from torch import Tensor, nn

from isomax_adapters.pytorch_ood.wiring import (
    Outputs,
    Wiring,
    chunks,
    needs_one_classifier,
    needs_weights,
)

PAIRS = 16  # classes whose differences to all others are held at a time


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


def _fit_on_the_mean(detector: Any, outputs: Outputs) -> None:
    # all that these keep of the features is their mean
    mean = outputs.statistics.moments().center.float()[None]
    detector.fit_features(mean, torch.zeros(1, dtype=torch.long))


def _fit_fdbd(detector: Any, outputs: Outputs) -> None:
    detector.train_mean = outputs.statistics.moments().center.float()
    weight = detector.head.weight.detach()
    # its own takes the difference of every pair of classes at once, C x C x D values
    apart = [(rows[:, None] - weight).norm(dim=2) for rows in weight.split(PAIRS)]
    detector._denom_matrix = torch.cat(apart).fill_diagonal_(1)


def _fit_she(detector: Any, outputs: Outputs) -> None:
    classes = int(outputs.labels.max()) + 1
    sums = torch.zeros(classes, outputs.features.shape[1], dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    with torch.no_grad():
        for features, labels in chunks(outputs.features, outputs.labels):
            right = detector.head(features).argmax(dim=1) == labels
            sums.index_add_(0, labels[right], features[right].double())
            counts += torch.bincount(labels[right], minlength=classes)
    if (counts == 0).any():
        raise ValueError(f"No correct predictions for class {int((counts == 0).nonzero()[0])}")
    detector.patterns = (sums / counts[:, None]).float()


ENTRIES: dict[str, Wiring] = {
    "DICE": Wiring(
        ood.DICE,
        "pooled features; 90% of the classifier's weights set to zero",
        "https://github.com/deeplearning-wisc/dice: models/route.py",
        needs_weights,
        build=lambda p: ood.DICE(p.encode, p.weight, p.bias, p=0.9),
        fit_large=_fit_on_the_mean,
        network=_DICE,
    ),
    "fDBD": Wiring(
        ood.fDBD,
        "pooled features and the classifier's weights",
        "https://github.com/litianliu/fDBD-OOD: run_imagenet.py",
        needs_weights,
        build=lambda p: ood.fDBD(p.encode, p.linear_layer()),
        fit_large=_fit_fdbd,
    ),
    "LTS": Wiring(
        ood.LTS,
        "pooled features; the largest 5% of them",
        "https://github.com/andrijazz/lts: lts.py",
        needs_one_classifier,
        build=lambda p: ood.LTS(p.encode, p.classify),
    ),
    "NCI": Wiring(
        ood.NCI,
        "pooled features and the classifier's weights; the norm weighs 0",
        "https://arxiv.org/abs/2311.01479",
        needs_weights,
        build=lambda p: ood.NCI(p.encode, p.linear_layer()),
        differs="the weight of the norm is 0 unless it is tuned",
        fit_large=_fit_on_the_mean,
        network=_NCI,
    ),
    "SHE": Wiring(
        ood.SHE,
        "pooled features; the mean of those classified right",
        "https://github.com/zjs975584714/SHE_ood_detection: generate_stored_pattern.py",
        needs_one_classifier,
        build=lambda p: ood.SHE(p.encode, p.classify),
        fit_large=_fit_she,
    ),
}
