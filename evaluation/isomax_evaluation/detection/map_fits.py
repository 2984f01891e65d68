"""Detectors fitted on feature maps that lie on disk, with little of them in memory at a time."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from pytorch_ood.api import FeatureMapsDetector
from pytorch_ood.detector import VRA, ReAct
from torch import Tensor

from isomax_evaluation.extraction.feature_maps import MapsOnDisk

CHUNK = 4 * 2**20  # values looked at at a time


def fit_on_maps(detector: FeatureMapsDetector, maps: MapsOnDisk, labels: Tensor) -> None:
    """Fit a detector on feature maps with little of them in memory at a time.

    :param labels: :math:`N`, all of them at least 0
    """
    array = maps.array()
    if isinstance(detector, ReAct):
        detector.threshold = percentile(array.reshape(-1), detector.percentile)
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


def percentile(values: np.ndarray, share: float) -> float:
    """The value below which a share of many float32 values lies, as ``np.quantile`` gives it.

    Exact in two passes over the values, with a fixed amount of memory: they are counted by the
    upper, then by the lower half of their bits, whose order is that of the numbers.

    :raises ValueError: if some are NaN
    """
    place = share * (len(values) - 1)
    low = int(np.floor(place))
    ranks = [low, min(low + 1, len(values) - 1)]

    def keys() -> Iterable[np.ndarray]:
        for start in range(0, len(values), CHUNK):
            chunk = np.asarray(values[start : start + CHUNK])
            if np.isnan(chunk).any():
                raise ValueError("the feature maps contain NaN")
            bits = chunk.view(np.uint32)
            yield np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))

    def counts(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(1 << 16, dtype=np.int64)
        for chunk in keys():
            total += np.bincount(of(chunk), minlength=1 << 16)
        return total

    upper = np.cumsum(counts(lambda key: key >> 16))
    found = []
    for rank in ranks:
        group = int(np.searchsorted(upper, rank, side="right"))
        before = int(upper[group - 1]) if group else 0
        lower = np.cumsum(counts(lambda key, g=group: key[key >> 16 == g] & 0xFFFF))  # type: ignore[misc]
        key = np.uint32((group << 16) + int(np.searchsorted(lower, rank - before, side="right")))
        bits = key ^ np.uint32(1 << 31) if key >> 31 else ~key
        found.append(float(np.array(bits, np.uint32).view(np.float32)))
    return found[0] + (found[1] - found[0]) * (place - low)
