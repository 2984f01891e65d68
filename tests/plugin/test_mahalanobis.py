"""Mahalanobis++ and RMD++ against scikit-learn's covariance, and where it cannot be inverted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.metrics import roc_auc_score

from isomax import RMDPP, MahalanobisPP, moments

both = pytest.mark.parametrize("detector_class", [MahalanobisPP, RMDPP])
seeds = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def clusters(generator, count=90, width=8, classes=3):
    """Features of different lengths around class means, with labels."""
    means = torch.randn(classes, width, generator=generator)
    labels = torch.arange(count) % classes
    z = means[labels] + 0.3 * torch.randn(count, width, generator=generator)
    return z * (0.5 + torch.rand(count, 1, generator=generator)), labels


def unit(z):
    z = z.double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def reference(z, y, test, covariance=EmpiricalCovariance, normalize=True):
    """Squared distances to the nearest class and to everything, as the papers write them."""
    z, test = (unit(x) if normalize else x.double().numpy() for x in (z, test))
    y = y.numpy()
    means = np.stack([z[y == k].mean(axis=0) for k in np.unique(y)])
    overall = z.mean(axis=0)

    def distances(residuals, centers):
        precision = covariance(assume_centered=True).fit(residuals).precision_
        gaps = test[:, None] - centers
        return np.einsum("bkd,de,bke->bk", gaps, precision, gaps).min(axis=1)

    index = np.searchsorted(np.unique(y), y)
    return distances(z - means[index], means), distances(z - overall, overall[None])


@given(seeds, st.booleans())
def test_scores_are_the_papers(generator, normalize):
    z, y = clusters(generator)
    test = torch.randn(20, 8, generator=generator)
    nearest, everything = reference(z, y, test, normalize=normalize)
    scores = MahalanobisPP(None, normalize).fit_features(z, y).predict_features(test)
    np.testing.assert_allclose(scores, nearest, rtol=1e-8)
    scores = RMDPP(None, normalize).fit_features(z, y).predict_features(test)
    np.testing.assert_allclose(scores, nearest - everything, rtol=1e-8, atol=1e-8 * nearest.max())


@both
@given(generator=seeds)
def test_length_and_rotation_of_the_features_do_not_matter(detector_class, generator):
    z, y = clusters(generator)
    test = torch.randn(20, 8, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator).double()).Q
    lengths = 0.1 + torch.rand(90, 1, generator=generator).double()
    scores = detector_class(None).fit_features(z.double(), y).predict_features(test)
    turned = detector_class(None).fit_features(lengths * z.double() @ turn, y)
    torch.testing.assert_close(
        turned.predict_features(7 * test @ turn), scores, rtol=1e-7, atol=1e-6
    )


class Rows:
    """Features that give a few rows at a time, as a file would."""

    def __init__(self, z, most):
        self.z, self.most, self.shape, self.device = z, most, z.shape, z.device

    def __len__(self):
        return len(self.z)

    def __getitem__(self, rows):
        assert rows.stop - rows.start <= self.most
        return self.z[rows]


@both
def test_features_are_read_a_chunk_at_a_time(detector_class, monkeypatch, tmp_path):
    z, y = clusters(torch.Generator().manual_seed(0), count=100)
    whole = detector_class(None).fit_features(z, y)
    monkeypatch.setattr(moments, "CHUNK", 56)
    parts = detector_class(None).fit_features(Rows(z, most=7), y)
    torch.testing.assert_close(parts.predict_features(z), whole.predict_features(z))
    on_disk = np.memmap(tmp_path / "z", np.float32, "w+", shape=z.shape)
    on_disk[:] = z.numpy()
    mapped = detector_class(None).fit_features(torch.from_numpy(on_disk), y)
    torch.testing.assert_close(mapped.predict_features(z), whole.predict_features(z))


@both
def test_outliers_are_left_out_and_labels_may_have_gaps(detector_class):
    z, y = clusters(torch.Generator().manual_seed(0))
    expected = detector_class(None).fit_features(z, y).predict_features(z)
    padded = torch.cat([5 * torch.randn(10, 8), z])
    labels = torch.cat([torch.full((10,), -1), 10 * y])
    detector = detector_class(None).fit_features(padded, labels)
    torch.testing.assert_close(detector.predict_features(z), expected)


@both
def test_fitting_on_a_loader_is_fitting_on_its_features(detector_class):
    z, y = clusters(torch.Generator().manual_seed(0))
    encoder = torch.nn.Linear(8, 6)
    detector = detector_class(encoder)
    assert isinstance(detector, FeaturesDetector)
    assert detector.requires_fit
    assert detector.fit(zip(z.split(20), y.split(20), strict=True)) is detector
    with torch.no_grad():
        by_hand = detector_class(None).fit_features(encoder(z), y)
        torch.testing.assert_close(detector(z), by_hand.predict_features(encoder(z)))


@pytest.mark.parametrize(
    ("covariance", "count", "distance"), [(LedoitWolf, 80, 1), (EmpiricalCovariance, 40, 10)]
)
def test_relative_distance_is_not_inverted_where_regularising_each_covariance_inverts_it(
    covariance, count, distance
):
    """With the shrinkage of Ledoit and Wolf, and with pseudo-inverses of too few samples."""
    generator = torch.Generator().manual_seed(0)
    means = distance * torch.randn(4, 60, generator=torch.Generator().manual_seed(9))

    def draw(count):
        labels = torch.arange(count) % 4
        spread = torch.logspace(0, -0.5, 60) * torch.randn(count, 60, generator=generator)
        return means[labels] + spread, labels

    z, y = draw(count)
    known, _ = draw(200)
    unknown = known + 2 * torch.randn(200, 60, generator=generator)  # in every direction
    test, is_unknown = torch.cat([known, unknown]), np.repeat([0, 1], 200)
    nearest, everything = reference(z, y, test, covariance)
    assert roc_auc_score(is_unknown, nearest - everything) < 0.3
    for detector_class in (MahalanobisPP, RMDPP):
        scores = detector_class(None).fit_features(z, y).predict_features(test)
        assert scores.isfinite().all()
        assert roc_auc_score(is_unknown, scores) > 0.9


@given(seeds, st.sampled_from([12, 200]))
def test_the_background_makes_no_deviation_longer_than_the_classes_do(generator, count):
    detector = RMDPP(None).fit_features(*clusters(generator, count, width=16))
    deviations = torch.randn(50, 16, generator=generator).double()
    to_class = (deviations @ detector.whitening).square().sum(dim=1)
    to_all = (deviations @ detector.background_whitening).square().sum(dim=1)
    assert (to_all <= to_class * (1 + 1e-6)).all()


def test_a_feature_that_is_always_zero_counts_where_it_is_not():
    z, y = clusters(torch.Generator().manual_seed(0))
    z[:, 3] = 0
    odd = z[:1].clone()
    odd[0, 3] = 0.1
    detector = MahalanobisPP(None).fit_features(z, y)
    assert detector.predict_features(odd) > detector.predict_features(z).max()


@both
def test_distances_have_a_gradient(detector_class):
    z, y = clusters(torch.Generator().manual_seed(0))
    detector = detector_class(None).fit_features(z, y)
    test = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(detector.distances(test), detector.predict_features(test))
    assert torch.autograd.gradcheck(detector.distances, test)


@both
def test_an_all_zero_feature_vector_has_a_score(detector_class):
    detector = detector_class(None).fit_features(*clusters(torch.Generator().manual_seed(0)))
    assert detector.predict_features(torch.zeros(1, 8)).isfinite().all()


@both
def test_what_cannot_be_fitted_or_scored_is_named(detector_class):
    z, y = clusters(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no label is at least 0"):
        detector_class(None).fit_features(z, torch.full_like(y, -1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        detector_class(None).fit_features(z.masked_fill(z > 1, torch.nan), y)
    with pytest.raises(ValueError, match="do not vary within any class"):
        detector_class(None).fit_features(z[:3], y[:3])
    with pytest.raises(RequiresFittingException):
        detector_class(None).predict_features(z)
    with pytest.raises(ModelNotSetException):
        detector_class(None).fit([(z, y)])
    with pytest.raises(ModelNotSetException):
        detector_class(None).fit_features(z, y).predict(z)
