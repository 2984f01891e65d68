"""Class means, and heads that start at them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from isomax import DisMaxHead, IsoMaxHead, IsoMaxPlusHead, moments
from isomax.functional import isomax_loss
from isomax.heads import HEADS
from isomax.starting import class_means, start_at_means, start_at_zero, start_head

seeds = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
of_directions = pytest.mark.parametrize("head_class", [IsoMaxPlusHead, DisMaxHead, nn.Linear])
every_head = pytest.mark.parametrize("head_class", [*HEADS.values(), nn.Linear])


def clusters(generator, count=90, width=8, classes=3):
    """Features of different lengths around class means, with labels."""
    means = torch.randn(classes, width, generator=generator)
    labels = torch.arange(count) % classes
    features = means[labels] + 0.3 * torch.randn(count, width, generator=generator)
    return features * (0.5 + torch.rand(count, 1, generator=generator)), labels


@given(seeds, st.booleans(), st.integers(1, 40))
def test_means_are_those_of_each_class_whatever_the_chunks(generator, normalize, chunk):
    features, labels = clusters(generator, count=30)
    labels[torch.rand(30, generator=generator) < 0.2] = -1
    labels[:3] = torch.arange(3)
    rows = features.double().numpy()
    if normalize:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.stack([rows[labels.numpy() == k].mean(axis=0) for k in range(3)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "CHUNK", chunk * 8)
        means = class_means(features, labels, 3, normalize)
    assert means.dtype == torch.float64
    np.testing.assert_allclose(means.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_means_are_summed_in_double_precision():
    features, labels = torch.full((200_000, 1), 0.1), torch.zeros(200_000, dtype=torch.long)
    single = torch.zeros(1, 1).index_add_(0, labels, features) / 200_000
    assert abs(float(single) - float(features[0])) > 1e-5
    mean = class_means(features, labels, 1, normalize=False)
    assert abs(float(mean) - float(features[0])) < 1e-12


class Rows:
    """Features that give a few rows at a time, as a file would."""

    def __init__(self, features, most):
        self.features, self.most, self.read = features, most, 0
        self.shape, self.dim = features.shape, features.dim

    def __getitem__(self, rows):
        assert rows.stop - rows.start <= self.most
        self.read += len(self.features[rows])
        return self.features[rows]


def test_features_are_read_once_a_chunk_at_a_time(monkeypatch, tmp_path):
    features, labels = clusters(torch.Generator().manual_seed(0), count=100)
    whole = class_means(features, labels, 3)
    monkeypatch.setattr(moments, "CHUNK", 56)
    rows = Rows(features, most=7)
    torch.testing.assert_close(class_means(rows, labels, 3), whole)
    assert rows.read == 100
    on_disk = np.memmap(tmp_path / "features", np.float32, "w+", shape=features.shape)
    on_disk[:] = features.numpy()
    torch.testing.assert_close(class_means(torch.from_numpy(on_disk), labels, 3), whole)


@of_directions
@given(generator=seeds)
def test_the_class_is_that_of_the_nearest_mean_direction_whatever_the_lengths(
    head_class, generator
):
    features, labels = clusters(generator)
    head = head_class(8, 3)
    start_at_means(head, features, labels)
    means = F.normalize(class_means(features, labels, 3), dim=1)
    nearest = (F.normalize(features.double(), dim=1) @ means.T).argmax(dim=1)
    assert torch.equal(head(features).argmax(dim=1), nearest)
    other = head_class(8, 3)
    start_at_means(other, 7 * features, labels)
    torch.testing.assert_close(other(features), head(features))


@pytest.mark.parametrize("head_class", [IsoMaxPlusHead, DisMaxHead])
def test_what_was_learned_before_is_gone(head_class):
    features, labels = clusters(torch.Generator().manual_seed(0))
    head = head_class(8, 3)
    nn.init.constant_(head.distance_scale, 0.3)
    start_at_means(head, features, labels)
    assert head.distance_scale == 1
    torch.testing.assert_close(head.prototypes, class_means(features, labels, 3).float())


def test_isomax_measures_to_the_means_of_the_features_as_they_are():
    features, labels = clusters(torch.Generator().manual_seed(0))
    head = IsoMaxHead(8, 3)
    start_at_means(head, features, labels)
    means = torch.stack([features[labels == k].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(head(features), -torch.cdist(features, means))


@pytest.mark.parametrize("head_class", [IsoMaxHead, nn.Linear])
def test_at_zero_all_posteriors_are_equal(head_class):
    features, labels = clusters(torch.Generator().manual_seed(0))
    head = head_class(8, 3)
    nn.init.normal_(next(head.parameters()))
    start_at_zero(head)
    loss = isomax_loss(head(features), labels)
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))


@pytest.mark.parametrize("head_class", [IsoMaxPlusHead, DisMaxHead])
def test_directions_have_no_zero_to_start_at(head_class):
    with pytest.raises(TypeError, match=r"cannot start at zero.*use start_at_means"):
        start_at_zero(head_class(8, 3))


@every_head
def test_a_head_starts_where_its_training_is_best_begun(head_class):
    features, labels = clusters(torch.Generator().manual_seed(0))
    head, expected = head_class(8, 3), head_class(8, 3)
    before = torch.get_rng_state()
    start_head(head, features, labels)
    assert torch.equal(torch.get_rng_state(), before)
    if head_class in (IsoMaxHead, nn.Linear):
        start_at_zero(expected)
    else:
        start_at_means(expected, features, labels)
    assert torch.equal(head(features), expected(features))
    assert all(parameter.requires_grad for parameter in head.parameters())


@every_head
def test_one_image_per_class_is_its_own_mean(head_class):
    features, labels = torch.eye(3, 8), torch.arange(3)
    head = head_class(8, 3)
    start_at_means(head, features, labels)
    assert torch.equal(head(features).argmax(dim=1), labels)


@of_directions
def test_a_mean_without_direction_is_refused_with_its_class(head_class):
    features, labels = clusters(torch.Generator().manual_seed(0))
    features[labels == 1] = 0
    assert (class_means(features, labels, 3)[1] == 0).all()
    with pytest.raises(ValueError, match="features of class 1 are all zero or cancel out"):
        start_at_means(head_class(8, 3), features, labels)
    features[labels == 1] = torch.tensor([1.0, -1.0]).repeat(15)[:, None] * torch.randn(8)
    with pytest.raises(ValueError, match="class 1 are all zero or cancel out"):
        start_at_means(head_class(8, 3), features, labels)


def test_some_zero_features_leave_the_direction_of_the_others():
    features, labels = clusters(torch.Generator().manual_seed(0))
    expected = F.normalize(class_means(features, labels, 3), dim=1)
    padded, more = torch.cat([features, torch.zeros(3, 8)]), torch.cat([labels, torch.arange(3)])
    torch.testing.assert_close(F.normalize(class_means(padded, more, 3), dim=1), expected)


def test_what_cannot_be_used_is_named():
    features, labels = clusters(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no sample of class 3, 4 among 90"):
        class_means(features, labels, 5)
    with pytest.raises(ValueError, match="no sample of class 0"):
        class_means(features, torch.full_like(labels, -1), 3)
    with pytest.raises(ValueError, match="label 2 with 2 classes"):
        class_means(features, labels, 2)
    with pytest.raises(ValueError, match=r"features have shape \(90, 8\), labels \(89,\)"):
        class_means(features, labels[:-1], 3)
    with pytest.raises(ValueError, match="features of class 1 are NaN or infinite"):
        class_means(features.masked_fill((labels == 1)[:, None], torch.inf), labels, 3)
    with pytest.raises(TypeError, match=r"Conv2d is no head; expected IsoMaxHead.*nn\.Linear"):
        start_at_means(nn.Conv2d(8, 3, 1), features, labels)
