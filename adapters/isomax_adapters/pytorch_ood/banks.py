"""Detectors that compare with each fitted sample, with fewer of these."""

import copy
from typing import Any

import numpy as np

from isomax_adapters.runtime.errors import InputError


def with_bank(detector: Any, most: int) -> Any:
    """A fitted detector that compares with at most so many of its samples, evenly spaced: nearest
    neighbours' and NNGuide's; others are as they are.

    :raises InputError: if there are fewer than its nearest neighbours
    """
    known = getattr(detector, "knn", None)
    samples = known._fit_X if known is not None else getattr(detector, "_scaled_features", None)
    if samples is None or len(samples) <= most:
        return detector
    if most < detector.k:
        raise InputError(f"the bank is {most}; expected at least its {detector.k} neighbours")
    chosen = np.linspace(0, len(samples) - 1, most).round().astype(int)
    smaller = copy.copy(detector)
    if known is not None:
        smaller.knn = copy.copy(known)
        smaller.knn.fit(samples[chosen])
    else:
        smaller._scaled_features = samples[chosen]
    return smaller
