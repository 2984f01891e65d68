"""Heads on the features of a model that stays as it is, as detectors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from pytorch_ood.utils import GridSearch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from isomax import PostHocDisMax, PostHocIsoMax, PostHocIsoMaxPlus, moments
from isomax.fitting import fit_head
from isomax.functional import entropic_score
from isomax.starting import start_head

every_one = pytest.mark.parametrize(
    "detector_class", [PostHocIsoMax, PostHocIsoMaxPlus, PostHocDisMax]
)
trained_or_not = pytest.mark.parametrize("epochs", [0, 5])
seeds = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def clusters(generator=None, count=120, width=16, classes=4):
    """Features around class means, with labels."""
    generator = generator or torch.Generator().manual_seed(0)
    means = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return means[labels] + torch.randn(count, width, generator=generator), labels


@settings(max_examples=30)
@given(seeds)
def test_without_training_the_scores_are_those_of_the_class_means(generator):
    z, y = clusters(generator)
    test = torch.randn(20, 16, generator=generator)
    means = torch.stack([z[y == k].mean(dim=0) for k in range(4)])
    scores = PostHocIsoMax(None).fit_features(z, y).predict_features(test)
    expected = entropic_score(-torch.cdist(test.double(), means.double()))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)

    unit = F.normalize(z.double(), dim=1)
    means = F.normalize(torch.stack([unit[y == k].mean(dim=0) for k in range(4)]), dim=1)
    distances = torch.cdist(F.normalize(test.double(), dim=1), means)
    scores = PostHocIsoMaxPlus(None).fit_features(z, y).predict_features(test)
    torch.testing.assert_close(scores, distances.amin(dim=1), rtol=1e-5, atol=1e-5)

    logits = -(distances + distances.mean(dim=1, keepdim=True)) / 2**0.5
    expected = entropic_score(logits) - logits.amax(dim=1) - logits.mean(dim=1)
    scores = PostHocDisMax(None).fit_features(z, y).predict_features(test)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_distances_far_smaller_than_the_features_do_not_cancel():
    z, y = clusters()
    z = 100 + 0.01 * z  # all of nearly the same direction
    means = torch.stack([F.normalize(z[y == k].double(), dim=1).mean(dim=0) for k in range(4)])
    directions = F.normalize(z.double(), dim=1)
    expected = (directions[:, None] - F.normalize(means, dim=1)).norm(dim=2).amin(dim=1)
    scores = PostHocIsoMaxPlus(None).fit_features(z, y).predict_features(z)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=0)


@every_one
def test_with_training_the_scores_are_those_of_the_trained_head(detector_class):
    z, y = clusters()
    head = detector_class.head_class(16, 4)
    start_head(head, z, y)
    fit_head(head, z, y, epochs=5, lr=0.01, seed=3)
    detector = detector_class(None, epochs=5, lr=0.01, seed=3).fit_features(z, y)
    torch.testing.assert_close(detector.head(z.double()).float(), head(z))
    without = detector_class(None).fit_features(z, y)
    assert not torch.equal(detector.predict_features(z), without.predict_features(z))


@every_one
@trained_or_not
def test_scores_are_larger_for_outliers(detector_class, epochs):
    detector = detector_class(None, epochs).fit_features(*clusters())
    known, _ = clusters(torch.Generator().manual_seed(1), count=200)
    unknown = 2 * torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    scores = detector.predict_features(torch.cat([known, unknown]))
    assert roc_auc_score(np.repeat([0, 1], 200), scores.numpy()) > 0.8


@every_one
@trained_or_not
def test_fitting_on_a_loader_is_fitting_on_its_features(detector_class, epochs):
    z, y = clusters()
    encoder = nn.Linear(16, 6)
    detector = detector_class(encoder, epochs)
    assert isinstance(detector, FeaturesDetector)
    assert detector.requires_fit
    assert detector.fit(zip(z.split(50), y.split(50), strict=True)) is detector
    with torch.no_grad():
        by_hand = detector_class(None, epochs).fit_features(encoder(z), y)
        torch.testing.assert_close(detector(z), by_hand.predict_features(encoder(z)))
    assert encoder.weight.grad is None


@every_one
@trained_or_not
def test_outliers_are_left_out_and_labels_may_have_gaps(detector_class, epochs):
    z, y = clusters()
    expected = detector_class(None, epochs).fit_features(z, y).predict_features(z)
    padded = torch.cat([50 * torch.randn(10, 16), z])
    labels = torch.cat([torch.full((10,), -1), 10 * y])
    detector = detector_class(None, epochs).fit_features(padded, labels)
    assert torch.equal(detector.predict_features(z), expected)


@every_one
@trained_or_not
def test_equal_fits_are_equal_draw_nothing_and_may_be_on_disk(
    detector_class, epochs, monkeypatch, tmp_path
):
    z, y = clusters()
    monkeypatch.setattr(moments, "CHUNK", 7 * 16)
    on_disk = np.memmap(tmp_path / "z", np.float32, "w+", shape=z.shape)
    on_disk[:] = z.numpy()
    before = torch.get_rng_state()
    detectors = [
        detector_class(None, epochs).fit_features(features, y)
        for features in (z, torch.from_numpy(on_disk))
    ]
    assert torch.equal(torch.get_rng_state(), before)
    scores = [detector.predict_features(z) for detector in detectors]
    assert torch.equal(*scores)
    assert not scores[0].requires_grad
    again = detectors[0].fit_features(z, y)
    assert torch.equal(again.predict_features(z), scores[0])


@every_one
def test_copies_and_pickles_score_the_same(detector_class):
    z, y = clusters()
    detector = detector_class(None).fit_features(z, y)
    for same in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert torch.equal(same.predict_features(z), detector.predict_features(z))


@every_one
def test_device_moves_take_the_head_along(detector_class):
    z, y = clusters()
    detector = detector_class(None).fit_features(z, y)
    scores = detector.to("meta").predict_features(z)
    assert detector.head.prototypes.is_meta
    assert scores.is_meta
    assert scores.shape == (120,)


@every_one
def test_what_is_fitted_can_be_exported_with_a_free_batch_size(detector_class):
    z, y = clusters()
    detector = detector_class(None).fit_features(z, y)

    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = detector.head

        def forward(self, z):
            return detector.predict_features(z)

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Scorer(), (z[:3],), dynamic_shapes={"z": {0: batch}}, strict=False
    )
    torch.testing.assert_close(program.module()(z[:7]), detector.predict_features(z[:7]))


@every_one
def test_pytorch_oods_grid_search_tries_training(detector_class):
    z, y = clusters()
    validation = torch.cat([z, torch.randn(40, 16)])
    labels = torch.cat([y, torch.full((40,), -1)])
    detector = detector_class(nn.Identity())
    search = GridSearch(detector, [(z, y)], [(validation, labels)])
    assert search.run() == {"epochs": detector.epochs}
    assert [result["params"] for result in search.results_] == [{"epochs": 0}, {"epochs": 20}]


@every_one
def test_an_all_zero_feature_vector_has_a_score(detector_class):
    detector = detector_class(None).fit_features(*clusters())
    assert detector.predict_features(torch.zeros(1, 16)).isfinite().all()


@every_one
@trained_or_not
def test_what_cannot_be_fitted_or_scored_is_named(detector_class, epochs):
    z, y = clusters()
    with pytest.raises(ValueError, match="no label is at least 0"):
        detector_class(None, epochs).fit_features(z, torch.full_like(y, -1))
    with pytest.raises(ValueError, match="NaN"):
        detector_class(None, epochs).fit_features(z.masked_fill(z > 1, torch.nan), y)
    with pytest.raises(RequiresFittingException):
        detector_class(None, epochs).predict_features(z)
    with pytest.raises(ModelNotSetException):
        detector_class(None, epochs).fit([(z, y)])
    with pytest.raises(ModelNotSetException):
        detector_class(None, epochs).fit_features(z, y).predict(z)
