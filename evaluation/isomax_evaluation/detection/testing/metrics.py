"""The metrics of out-of-distribution detection, by pytorch-ood's names."""

import warnings

import numpy as np
import torch
from pytorch_ood.metrics import OODMetrics
from torch import Tensor

from isomax.doubts import ROUNDING

METRICS = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")  # those that intervals are made of
COLUMNS = (*METRICS, "AUTC", "FPR95TPR-IN")


def ood_metrics(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """pytorch-ood's metrics of one ID and one OOD set of scores, which take OOD images as the
    positive class; and FPR95TPR with ID images as the positive class, ``FPR95TPR-IN``."""
    computed = _computed(id_scores, ood_scores)
    computed["FPR95TPR-IN"] = _computed(-ood_scores, -id_scores)["FPR95TPR"]
    return {name: float(computed[name]) for name in COLUMNS}


def _computed(negative: Tensor, positive: Tensor) -> dict[str, float]:
    metrics = OODMetrics()
    metrics.update(negative, torch.zeros(len(negative), dtype=torch.long))
    metrics.update(positive, torch.full((len(positive),), -1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AUTC is undefined")  # an empty cell says so
        found: dict[str, float] = metrics.compute()
    return found


def one_score(known: np.ndarray, unknown: np.ndarray) -> str:
    """That all images have one score but for rounding, if they have, so that none can be told from
    another."""
    low = float(min(known.min(), unknown.min()))
    high = float(max(known.max(), unknown.max()))
    if high - low > ROUNDING * max(abs(low), abs(high)):
        return ""
    rounding = "" if low == high else " but for rounding"
    return f"all {len(known) + len(unknown)} images get one score{rounding}, {low:.6g}"
