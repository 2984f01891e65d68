"""Detectors of the last feature maps, before pooling."""

import copy
from typing import Any

import numpy as np
import pytorch_ood.detector as ood
import torch
from torch import Tensor

from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.quantiles import overall_quantile
from isomax_adapters.pytorch_ood.wiring import Wiring

CHUNK = 4 * 2**20  # values looked at at a time


def needs_maps(parts: Parts) -> str | None:
    if parts.maps_layout:
        return None
    return "needs feature maps, and the model's last features are tokens"


def _fit_react(detector: Any, maps: np.ndarray, labels: Tensor) -> None:
    detector.threshold = overall_quantile(maps, detector.percentile)


def _fit_vra(detector: Any, maps: np.ndarray, labels: Tensor) -> None:
    # its thresholds are per element, so channels can come one group after the other
    step = max(1, CHUNK // max(1, maps[:, 0].size))
    groups = []
    for start in range(0, maps.shape[1], step):
        group = torch.from_numpy(np.array(maps[:, start : start + step]))
        groups.append(copy.copy(detector).fit_feature_maps(group, labels))
    detector._lower_threshold = torch.cat([group._lower_threshold for group in groups])
    detector._upper_threshold = torch.cat([group._upper_threshold for group in groups])


ENTRIES: dict[str, Wiring] = {
    "ASH-maps": Wiring(
        ood.ASH,
        "feature maps before pooling; ASH-S, 65% of their values set to zero",
        "pytorch_ood.detector.ASH",
        needs_maps,
        differs="maps instead of pooled features",
    ),
    "RankFeat": Wiring(
        ood.RankFeat,
        "last feature maps, before pooling",
        "https://github.com/KingJamesSong/RankFeat: test_ood_resnetv2.py",
        needs_maps,
        differs="the last block alone, not its mean with the one before",
        no_file="it takes a singular value decomposition of each image's maps, which ONNX lacks; "
        "ReAct or ASH rectify features too",
    ),
    "ReAct-maps": Wiring(
        ood.ReAct,
        "feature maps before pooling, cut off at the 90th percentile of all their values",
        "pytorch_ood.detector.ReAct",
        needs_maps,
        differs="maps instead of pooled features",
        fit_maps=_fit_react,
    ),
    "SCALE-maps": Wiring(
        ood.SCALE,
        "feature maps before pooling; scaled by the largest 35% of their values",
        "pytorch_ood.detector.SCALE",
        needs_maps,
        differs="maps instead of pooled features",
    ),
    "VRA-maps": Wiring(
        ood.VRA,
        "feature maps before pooling, clipped to the 1st and 99th percentile of each value",
        "pytorch_ood.detector.VRA",
        needs_maps,
        differs="maps instead of pooled features, and raised to the lower percentile, not zeroed",
        fit_maps=_fit_vra,
    ),
}
