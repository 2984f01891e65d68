"""The false-alarm rate that is promised is kept, if the images that calibrate were seen by neither
model nor detector; and only then."""

import numpy as np
import pytest
import timm
import torch

from evaluation.benchmarks.promises.guarantee import ALPHA, rejected
from isomax.calibration import Calibration
from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_evaluation.detection.large import fit_outputs
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.scoring import score_outputs
from isomax_evaluation.extraction.store import Outputs

NAMES = ("ViM", "MahalanobisPP", "KNN", "NNGuide", "OpenMax", "EnergyBased", "PostHocIsoMaxPlus")
CLASSES = 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    return Model("m", 0, Parts(network), tuple("abcd"), None)


def outputs_of(model, count, seed):
    """Features around the classes' weights, as a trained network has them."""
    generator = torch.Generator().manual_seed(seed)
    weight = model.parts.weight.detach()
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, weight.shape[1], generator=generator)
    features = (3 * torch.nn.functional.normalize(weight, dim=1)[labels] + 0.3 * noise).relu()
    return Outputs(model.parts.classify(features).detach(), features, labels)


def fitted(model, name, training):
    (detector,) = detectors_for(model.parts, [name]).values()
    if detector.requires_fit:
        fit_outputs(detector, training)
    return detector


@pytest.mark.parametrize("name", NAMES)
def test_over_many_divisions_no_more_than_alpha_are_rejected(name, model):
    detector, held = fitted(model, name, outputs_of(model, 200, 0)), outputs_of(model, 400, 1)
    scores = score_outputs(detector, held).detach().float()
    rates = [rate for *_, rate in rejected(scores, held.logits, held.labels, name, 100)]
    assert len(rates) == 200
    assert np.mean(rates) <= ALPHA + 3 * np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert np.mean(rates) > ALPHA / 2  # nor is it a threshold that rejects nothing


def test_a_detector_that_was_fitted_on_what_calibrates_it_keeps_no_promise(model):
    own, apart = [], []
    for seed in range(40):
        training, fresh = outputs_of(model, 60, 2 * seed), outputs_of(model, 400, 2 * seed + 1)
        held = outputs_of(model, 60, 1000 + seed)
        detector = fitted(model, "MahalanobisPP", training)
        for rates, calibrating in ((own, training), (apart, held)):
            known, unseen = (score_outputs(detector, o).float() for o in (calibrating, fresh))
            found = Calibration.fit(
                calibrating.logits, calibrating.labels, "MahalanobisPP", ALPHA, known
            )
            rates.append(float(found.rejects(unseen).double().mean()))
    error = 3 * np.std(own, ddof=1) / np.sqrt(len(own))
    assert np.mean(own) > 10 * ALPHA + error
    assert np.mean(apart) <= ALPHA + 3 * np.std(apart, ddof=1) / np.sqrt(len(apart))
