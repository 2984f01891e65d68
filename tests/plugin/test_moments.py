"""What detectors are fitted on, found once for them all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from isomax import RMDPP, MahalanobisPP, PostHocIsoMax, PostHocIsoMaxPlus, moments
from isomax.moments import Moments, Statistics


def drawn(seed, count, width, classes=3):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % (classes + 1) - 1  # some are outliers
    return 1000 + torch.randn(count, width, generator=generator), 5 * y.clamp(max=classes)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99),
    count=st.integers(8, 40),
    width=st.integers(1, 12),
    normalize=st.booleans(),
    chunk=st.integers(1, 100),
    strip=st.integers(1, 13),
)
def test_any_scatter_follows_from_that_around_the_class_means(
    seed, count, width, normalize, chunk, strip
):
    z, y = drawn(seed, count, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "CHUNK", chunk)
        patch.setattr(moments, "STRIP", strip)
        found = Moments(z, y, normalize, "cpu")
        covariance, point = found.within, torch.randn(width, dtype=torch.float64)
    rows = z[y >= 0].double()
    rows = F.normalize(rows, dim=1) if normalize else rows
    labels = y[y >= 0]
    means = torch.stack([rows[labels == label].mean(dim=0) for label in found.classes])
    torch.testing.assert_close(found.means, means)
    torch.testing.assert_close(found.center, rows.mean(dim=0))
    away = rows - means[torch.searchsorted(found.classes, labels)]
    torch.testing.assert_close(covariance, away.T @ away / len(rows))
    away = rows - point
    torch.testing.assert_close(found.around(point), away.T @ away / len(rows))


class Counted:
    """Features that count how many rows of them are read."""

    def __init__(self, z):
        self.z, self.read = z, 0
        self.shape, self.device = z.shape, z.device

    def __getitem__(self, rows):
        self.read += len(self.z[rows])
        return self.z[rows]


def test_several_detectors_read_the_features_once_for_all(monkeypatch):
    monkeypatch.setattr(moments, "CHUNK", 56)
    z, y = drawn(0, 100, 8)
    counted = Counted(z)
    statistics = Statistics(counted, y)
    made = [
        *(kind(None, normalize) for kind in (MahalanobisPP, RMDPP) for normalize in (True, False)),
        *(kind(None) for kind in (PostHocIsoMax, PostHocIsoMaxPlus)),
    ]
    for detector in made:
        detector.fit_statistics(statistics)
    # for means and for scatter, of the features and of the normalised ones
    assert counted.read == 4 * len(z)
    alone = MahalanobisPP(None).fit_features(z, y)
    assert torch.equal(made[0].predict_features(z), alone.predict_features(z))


def test_moments_need_a_sample():
    with pytest.raises(ValueError, match="no label is at least 0"):
        Moments(torch.zeros(2, 3), torch.tensor([-1, -1]), False, "cpu")
