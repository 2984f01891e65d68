"""Detectors fitted a chunk at a time are those fitted at once."""

import pytest
import pytorch_ood.detector as ood
import torch
from torch import nn

from isomax_adapters.pytorch_ood import wiring
from isomax_adapters.pytorch_ood.entries.distances import GMM
from isomax_evaluation.detection import large, scoring
from isomax_evaluation.detection.large import fit_outputs
from isomax_evaluation.detection.scoring import score_outputs
from isomax_evaluation.extraction.store import Outputs

CLASSES, WIDTH, COUNT = 5, 12, 400


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, CLASSES)


@pytest.fixture(scope="module")
def outputs(head):
    torch.manual_seed(1)
    features = torch.randn(COUNT, WIDTH)
    with torch.no_grad():
        logits = head(features)
    labels = logits.argmax(dim=1)
    labels[::7] = torch.arange(len(labels[::7])) % CLASSES  # some are classified wrong
    assert set(labels.tolist()) == set(range(CLASSES))
    return Outputs(logits, features, labels)


def made(head):
    weight, bias = head.weight.detach(), head.bias.detach()
    return {
        "DICE": lambda: ood.DICE(None, weight, bias, p=0.7),
        "fDBD": lambda: ood.fDBD(None, head),
        "NCI": lambda: ood.NCI(None, head),
        "SHE": lambda: ood.SHE(None, head),
        "KLMatching": lambda: ood.KLMatching(None),
    }


NAMES = list(made(nn.Linear(WIDTH, CLASSES)))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_give_the_scores_of_the_whole(name, head, outputs, monkeypatch):
    whole, chunked = made(head)[name](), made(head)[name]()
    fit_outputs(whole, outputs)
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(wiring, "CHUNK", 37)
    assert large.sample_size(chunked, outputs) is None
    fit_outputs(chunked, outputs)
    expected = score_outputs(whole, outputs)
    monkeypatch.setattr(scoring, "AT_ONCE", 50 * CLASSES * WIDTH)
    torch.testing.assert_close(score_outputs(chunked, outputs), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["KNN", "NNGuide"])
def test_what_keeps_images_gets_a_stated_sample(name, head, outputs, monkeypatch):
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(large, "SAMPLE", 60)
    given = {"KNN": (None,), "NNGuide": (None, head)}[name]
    detector = getattr(ood, name)(*given)
    assert large.sample_size(detector, outputs) == 60
    fit_outputs(detector, outputs)
    if name == "KNN":
        assert detector.knn.n_samples_fit_ == 60
    if name == "NNGuide":
        assert len(detector._scaled_features) == 60


def test_what_holds_too_much_is_refused_with_the_figure(outputs):
    wide = Outputs(torch.zeros(3, 1000), torch.zeros(3, 2048), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"2048 x 2048 matrix for each of 1000 classes, 33\.6 GB"):
        fit_outputs(GMM(None), wide)
    fit_outputs(GMM(None, reg=1e-2), outputs)
