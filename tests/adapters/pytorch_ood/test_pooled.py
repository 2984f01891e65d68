"""ReAct, ASH, SCALE and VRA on pooled features are pytorch-ood's on maps of one place, or differ
from them as the papers do."""

import copy

import pytest
import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import RequiresFittingException
from pytorch_ood.utils import GridSearch

from isomax_adapters.pytorch_ood.entries.rectified import (
    PooledASH,
    PooledReAct,
    PooledSCALE,
    PooledVRA,
)

ALL = [PooledASH, PooledReAct, PooledSCALE, PooledVRA]
every = pytest.mark.parametrize("detector_class", ALL)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(40, 5)


def features(count):
    return torch.randn(count, 40).relu()  # half of them are zero


@pytest.mark.parametrize(
    ("pooled", "on_maps", "settings"),
    [
        (PooledASH, ood.ASH, {"percentile": 0.9}),
        (PooledSCALE, ood.SCALE, {"percentile": 0.85}),
        (PooledReAct, ood.ReAct, {"percentile": 0.9}),
    ],
)
def test_scores_are_those_of_maps_of_one_place(head, pooled, on_maps, settings):
    z, y, test = features(60), torch.arange(60) % 5, features(9)
    detector = pooled(None, head, **settings).fit_features(z, y)
    theirs = on_maps(None, lambda maps: head(maps.flatten(1)), **settings)
    theirs.fit_feature_maps(z[:, :, None, None], y)
    expected = theirs.predict_feature_maps(test[:, :, None, None])
    torch.testing.assert_close(detector.predict_features(test), expected)


def test_vra_zeroes_what_is_below_and_cuts_what_is_above(head):
    z = torch.arange(11.0)[:, None].expand(11, 40)
    detector = PooledVRA(None, head, 0.2, 0.8).fit_features(z, torch.zeros(11))
    shaped = detector.shaped(torch.tensor([[1.0, 2.0, 5.0, 8.0, 9.0] * 8]))
    torch.testing.assert_close(shaped, torch.tensor([[0.0, 2.0, 5.0, 8.0, 8.0] * 8]))


@every
def test_fitting_on_a_loader_is_fitting_on_its_features_without_outliers(head, detector_class):
    encoder = torch.nn.Linear(6, 40)
    images, labels, test = torch.randn(60, 6), torch.arange(60) % 5, torch.randn(9, 6)
    with torch.no_grad():
        by_hand = detector_class(None, head).fit_features(encoder(images), labels)
        expected = by_hand.predict_features(encoder(test))
    padded = torch.cat([images, 9 * torch.randn(20, 6)])
    batches = [(padded, torch.cat([labels, torch.full((20,), -1)]))]
    detector = detector_class(encoder, head)
    torch.testing.assert_close(detector.fit(batches)(test), expected)


@every
def test_hyperparameters_of_a_copy_are_its_own_and_are_searched(head, detector_class):
    detector = detector_class(torch.nn.Identity(), head)
    before = detector.get_hyperparameters()
    searched = copy.copy(detector)
    batches = [(torch.cat([features(40), 3 * features(40)]), torch.arange(80) // 40 - 1)]
    best = GridSearch(searched, batches, batches).run()
    assert searched.get_hyperparameters() == best
    assert detector.get_hyperparameters() == before


def test_what_is_not_fitted_says_so(head):
    for detector_class in (PooledReAct, PooledVRA):
        with pytest.raises(RequiresFittingException):
            detector_class(None, head).predict_features(features(2))
        with pytest.raises(ValueError, match="no label is at least 0"):
            detector_class(None, head).fit_features(features(2), torch.tensor([-1, -1]))
