"""Heads trained alone, on features."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isomax import DisMaxHead, IsoMaxHead, IsoMaxPlusHead, fitting, moments
from isomax.fitting import LINEAR_RATE, accuracy, fit_head, learning_rate
from isomax.functional import isomax_loss
from isomax.heads import HEADS
from isomax.starting import start_at_means, start_head

every_head = pytest.mark.parametrize("head_class", [*HEADS.values(), nn.Linear])


def features_of(count=150, width=16, classes=5, seed=0, length=1.0):
    """Features whose classes overlap, with labels."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return length * (means[labels] + torch.randn(count, width, generator=generator)), labels


def started(head_class, features, labels, **kwargs):
    head = head_class(features.shape[1], int(labels.max()) + 1, **kwargs)
    start_head(head, features, labels)
    return head


def weights(head):
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


@every_head
@pytest.mark.parametrize("length", [0.1, 1.0, 50.0])
def test_with_its_own_rate_a_head_learns_whatever_the_length_of_the_features(head_class, length):
    features, labels = features_of(length=length)
    head = started(head_class, features, labels)
    history = fit_head(head, features, labels, validation=features_of(600, seed=1, length=length))
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    means = nn.Linear(16, 5)
    start_at_means(means, features, labels)
    assert history[-1]["val_accuracy"] > accuracy(means, *features_of(600, seed=1)) - 0.03


@every_head
def test_equal_calls_give_equal_weights_and_draw_nothing_else(head_class):
    features, labels = features_of()
    heads = [started(head_class, features, labels) for _ in range(3)]
    before = torch.get_rng_state()
    histories = [
        fit_head(head, features, labels, epochs=2, seed=seed)
        for head, seed in zip(heads, (0, 0, 1), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(heads[0]), weights(heads[1]))
    assert histories[0] == histories[1]
    assert not torch.equal(weights(heads[0]), weights(heads[2]))


@every_head
def test_the_updates_are_those_of_sgd_along_a_cosine(head_class):
    """Written out: Nesterov momentum, weight decay, a last batch that is not full."""
    features, labels = features_of(count=37)
    head = started(head_class, features, labels)
    expected = copy.deepcopy(head)
    fit_head(head, features, labels, epochs=3, lr=0.01, batch_size=8, weight_decay=0.1, seed=4)
    generator, parameters = torch.Generator().manual_seed(4), list(expected.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    batches = [b for _ in range(3) for b in torch.randperm(37, generator=generator).split(8)]
    assert len(batches) == 15
    for update, batch in enumerate(batches):
        loss = F.cross_entropy if head_class is nn.Linear else isomax_loss
        gradients = torch.autograd.grad(loss(expected(features[batch]), labels[batch]), parameters)
        rate = 0.01 * (1 + math.cos(math.pi * update / 15)) / 2
        with torch.no_grad():
            for parameter, gradient, velocity in zip(
                parameters, gradients, velocities, strict=True
            ):
                gradient = gradient + 0.1 * parameter
                velocity.mul_(0.9).add_(gradient)
                parameter -= rate * (gradient + 0.9 * velocity)
    torch.testing.assert_close(weights(head), weights(expected), rtol=1e-5, atol=1e-6)


@every_head
def test_features_may_be_on_disk_or_made_in_inference_mode(head_class, tmp_path):
    features, labels = features_of()
    on_disk = np.memmap(tmp_path / "features", np.float32, "w+", shape=features.shape)
    on_disk[:] = features.numpy()
    with torch.inference_mode():
        inferred = features.clone()
    expected = started(head_class, features, labels)
    fit_head(expected, features, labels, epochs=2)
    for same in (torch.from_numpy(on_disk), inferred):
        head = started(head_class, same, labels)
        with torch.no_grad():
            fit_head(head, same, labels, epochs=2)
        assert torch.equal(weights(head), weights(expected))


@every_head
def test_outliers_are_left_out(head_class):
    features, labels = features_of()
    expected = started(head_class, features, labels)
    history = fit_head(expected, features, labels, epochs=2, validation=(features, labels))
    padded = torch.cat([100 * torch.randn(7, 16), features])
    more = torch.cat([torch.full((7,), -1), labels])
    head = started(head_class, padded, more)
    assert fit_head(head, padded, more, epochs=2, validation=(padded, more)) == history
    assert torch.equal(weights(head), weights(expected))


@pytest.mark.parametrize("head_class", HEADS.values())
def test_in_drop_in_mode_the_entropic_scale_counts_once(head_class):
    features, labels = features_of()
    plain = started(head_class, features, labels).train()
    drop_in = started(head_class, features, labels, drop_in=True).train()
    fit_head(plain, features, labels, epochs=2)
    fit_head(drop_in, features, labels, epochs=2)
    assert torch.equal(weights(plain), weights(drop_in))
    assert drop_in.training


def test_another_criterion_takes_the_place_of_the_heads_own():
    features, labels = features_of()
    head, smoothed = (started(nn.Linear, features, labels) for _ in range(2))
    fit_head(head, features, labels)
    fit_head(smoothed, features, labels, criterion=nn.CrossEntropyLoss(label_smoothing=0.3))
    assert smoothed.weight.norm() < 0.9 * head.weight.norm()


def test_accuracy_is_a_share_of_the_known_whatever_the_chunks(monkeypatch):
    features, labels = features_of(count=40)
    head = started(IsoMaxPlusHead, features, labels)
    expected = float((head(features).argmax(dim=1) == labels).float().mean())
    monkeypatch.setattr(fitting, "CHUNK", 48)
    labels = torch.cat([labels, torch.full((5,), -1)])
    features = torch.cat([features, torch.randn(5, 16)])
    assert accuracy(head, features, labels) == pytest.approx(expected)


def test_the_rate_of_a_linear_head_falls_with_the_squared_length(monkeypatch):
    features, labels = features_of()
    head = nn.Linear(16, 5)
    expected = LINEAR_RATE / float(features.square().sum(dim=1).mean())
    assert learning_rate(head, features, labels) == pytest.approx(expected)
    monkeypatch.setattr(moments, "CHUNK", 48)
    assert learning_rate(head, 10 * features, labels) == pytest.approx(expected / 100)
    assert learning_rate(DisMaxHead(16, 5), features, labels) == DisMaxHead.rate


@every_head
def test_no_epoch_changes_nothing_and_one_image_per_class_will_do(head_class):
    features, labels = torch.eye(3, 8), torch.arange(3)
    head = started(head_class, features, labels)
    before = weights(head).clone()
    assert fit_head(head, features, labels, epochs=0) == []
    assert torch.equal(weights(head), before)
    fit_head(head, features, labels, epochs=20)
    assert accuracy(head, features, labels) == 1


def test_what_cannot_be_used_is_named():
    features, labels = features_of()
    head = IsoMaxHead(16, 5)
    with pytest.raises(ValueError, match="epochs is -1, batch_size 64"):
        fit_head(head, features, labels, epochs=-1)
    with pytest.raises(ValueError, match="lr 0; expected"):
        fit_head(head, features, labels, lr=0)
    with pytest.raises(ValueError, match="label 4 with 3 classes"):
        fit_head(IsoMaxHead(16, 3), features, labels)
    with pytest.raises(ValueError, match="no label is at least 0"):
        fit_head(head, features, torch.full_like(labels, -1))
    with pytest.raises(ValueError, match="no label is at least 0"):
        accuracy(head, features, torch.full_like(labels, -1))
    with pytest.raises(ValueError, match="the features are all zero"):
        fit_head(nn.Linear(16, 5), torch.zeros_like(features), labels)
    with pytest.raises(ValueError, match=r"the loss is nan in epoch 1 at learning rate 0\.1"):
        fit_head(nn.Linear(16, 5), features.masked_fill(features > 2, torch.nan), labels, lr=0.1)
    with pytest.raises(TypeError, match="Sequential is no head"):
        fit_head(nn.Sequential(nn.Linear(16, 5)), features, labels)
