"""The metrics of out-of-distribution detection, by pytorch-ood's names."""

import warnings

import torch
from pytorch_ood.metrics import OODMetrics
from torch import Tensor

METRICS = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")  # those that intervals are made of
COLUMNS = (*METRICS, "AUTC")


def ood_metrics(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """pytorch-ood's metrics of one ID and one OOD set of scores."""
    metrics = OODMetrics()
    metrics.update(id_scores, torch.zeros(len(id_scores), dtype=torch.long))
    metrics.update(ood_scores, torch.full((len(ood_scores),), -1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AUTC is undefined")  # an empty cell says so
        computed = metrics.compute()
    return {name: float(computed[name]) for name in COLUMNS}
