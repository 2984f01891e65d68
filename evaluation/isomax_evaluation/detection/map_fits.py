"""Detectors fitted on feature maps that lie on disk, with little of them in memory at a time."""

import copy

import numpy as np
import torch
from pytorch_ood.api import FeatureMapsDetector
from pytorch_ood.detector import VRA, ReAct
from torch import Tensor

from isomax_adapters.pytorch_ood.quantiles import overall_quantile
from isomax_evaluation.extraction.feature_maps import MapsOnDisk

CHUNK = 4 * 2**20  # values looked at at a time


def fit_on_maps(detector: FeatureMapsDetector, maps: MapsOnDisk, labels: Tensor) -> None:
    """Fit a detector on feature maps with little of them in memory at a time.

    :param labels: :math:`N`, all of them at least 0
    """
    array = maps.array()
    if isinstance(detector, ReAct):
        detector.threshold = overall_quantile(array, detector.percentile)
    elif isinstance(detector, VRA):
        # its thresholds are per element, so channels can come one group after the other
        per_channel = max(1, array[:, 0].size)
        step = max(1, CHUNK // per_channel)
        groups = []
        for start in range(0, array.shape[1], step):
            part = copy.copy(detector)
            group = np.array(array[:, start : start + step])
            groups.append(part.fit_feature_maps(torch.from_numpy(group), labels))
        detector._lower_threshold = torch.cat([group._lower_threshold for group in groups])
        detector._upper_threshold = torch.cat([group._upper_threshold for group in groups])
    else:
        detector.fit_feature_maps(torch.from_numpy(np.array(array)), labels)
