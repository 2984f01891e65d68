"""The papers' rows find ours under the names of the command on the page."""

import pandas as pd
import pytest

from evaluation.benchmarks.claims.results_page import _paper
from isomax_evaluation.detection.testing.metrics import ood_metrics


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Tiny ImageNet", "TinyImageNetResize"),
        ("Tiny ImageNet", "tiny-imagenet-200"),
        ("LSUN", "LSUNResize"),
        ("SVHN", "SVHN"),
        ("CIFAR-100", "CIFAR100"),
    ],
)
def test_scores_under_our_names_stand_beside_theirs(theirs, ours):
    row = {"loss": "isomax+", "detector": "MinimumDistanceScore"}
    paper = pd.DataFrame(
        [row | {"model": "resnet34", "ood": theirs, "metric": metric, "mean": 90.0, "std": 1.0}
         for metric in ("AUROC", "AUPR")]
    )  # fmt: skip
    main = pd.DataFrame(
        [row | {"ood": ours, "seed": seed, "AUROC": 0.92, "AUPR-IN": 0.1, "AUPR-OUT": 0.95}
         for seed in (0, 1)]
    )  # fmt: skip
    auroc, aupr = _paper(paper, main)
    assert auroc["ours"] == [0.92, 0.92]
    assert auroc["gap"] == pytest.approx(2.0)
    assert aupr["ours"] == [0.95, 0.95]
    assert aupr["gap"] == pytest.approx(5.0)


def test_both_classes_as_the_positive_one():
    import torch

    known, unknown = torch.arange(100.0), torch.arange(60.0, 160.0)
    found = ood_metrics(known, unknown)
    # 95 of 100 OOD images lie above 64: of the ID images, 35 do
    assert found["FPR95TPR"] == pytest.approx(0.35, abs=0.011)
    # 95 of 100 ID images lie below 95: of the OOD images, 35 do
    assert found["FPR95TPR-IN"] == pytest.approx(0.35, abs=0.011)
    wide = torch.arange(0.0, 400.0, 4)
    skewed = ood_metrics(known, wide)
    assert skewed["FPR95TPR"] == pytest.approx(0.8, abs=0.02)
    assert skewed["FPR95TPR-IN"] == pytest.approx(0.24, abs=0.02)
