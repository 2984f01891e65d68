"""What pytorch-ood's detectors get wrong by a shortcut, and ours do not."""

import numpy as np
import pytest
import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import RequiresFittingException
from sklearn.metrics import roc_auc_score

from isomax import MahalanobisPP, moments
from isomax_adapters.pytorch_ood.entries.images import MahalanobisODIN
from isomax_adapters.pytorch_ood.entries.logits import OpenMax, TemperatureScaling
from isomax_adapters.pytorch_ood.entries.subspaces import PNML, ViM


def draw(count, width=30, classes=4):
    means = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % classes
    return means[labels] + torch.randn(count, width), labels


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_openmax_does_not_depend_on_the_batch():
    logits, labels = draw(200, width=4)
    fitted = OpenMax(None).fit_logits(logits, labels)
    scores = fitted.predict_logits(logits)
    one_by_one = torch.cat([fitted.predict_logits(row[None]) for row in logits])
    torch.testing.assert_close(scores, one_by_one)
    theirs = ood.OpenMax(None).fit_logits(logits, labels)
    torch.testing.assert_close(theirs.predict_logits(logits).double(), scores)
    assert not torch.allclose(theirs.predict_logits(logits[:1]).double(), scores[:1])


def test_openmax_takes_a_class_that_was_not_fitted_as_unknown():
    logits, labels = draw(200, width=4)
    fitted = OpenMax(None).fit_logits(logits[labels < 3], labels[labels < 3])
    assert fitted.predict_logits(torch.tensor([[0.0, 0.0, 0.0, 9.0]])) > 0.99
    with pytest.raises(RequiresFittingException):
        OpenMax(None).predict_logits(logits)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_temperature_scaling_finds_the_temperature(scale):
    logits = 2 * torch.randn(4000, 10)
    labels = torch.distributions.Categorical(logits=logits).sample()
    labels[:100] = -1
    ours = TemperatureScaling(None).fit_logits(scale * logits, labels)
    assert ours.t.item() == pytest.approx(scale, rel=0.05)
    theirs = ood.TemperatureScaling(None).fit_logits(scale * logits, labels)
    assert theirs.t.item() != pytest.approx(scale, rel=0.05)
    torch.testing.assert_close(
        ours.predict_logits(logits), -(logits / ours.t).softmax(dim=1).amax(dim=1)
    )


@pytest.mark.parametrize("name", ["PNML", "ViM"])
def test_fitted_a_chunk_at_a_time_without_outliers(name, monkeypatch):
    z, labels = draw(120)
    head = torch.nn.Linear(30, 4)

    def fitted(z, labels):
        if name == "PNML":
            return PNML(None, head).fit_features(z, labels)
        return ViM(None, 10, head.weight, head.bias).fit_features(z, labels)

    with torch.no_grad():
        expected = fitted(z, labels).predict_features(z)
        monkeypatch.setattr(moments, "CHUNK", 7 * 30)
        padded = torch.cat([z, 9 * torch.randn(20, 30)])
        detector = fitted(padded, torch.cat([labels, torch.full((20,), -1)]))
        torch.testing.assert_close(detector.predict_features(z), expected)
    with pytest.raises(ValueError, match="no label is at least 0"):
        fitted(z, torch.full_like(labels, -1))


@pytest.mark.parametrize(("count", "nothing"), [(10, True), (11, False)])
def test_vim_knows_when_nothing_lies_outside_of_its_subspace(count, nothing):
    z, labels = draw(count)
    head = torch.nn.Linear(30, 4)
    fitted = ViM(None, 10, head.weight, head.bias).fit_features(z, labels)
    assert fitted.spans_nothing_else == nothing
    assert (fitted.alpha > 1e4) == nothing


def test_vim_needs_something_outside_of_its_subspace():
    z, labels = draw(40)
    head = torch.nn.Linear(30, 4)
    with pytest.raises(ValueError, match="d is 30, which is all of the features' dimensions"):
        ViM(None, 30, head.weight, head.bias).fit_features(z, labels)


def test_mahalanobis_tells_outliers_where_float32_cannot_invert_the_covariance():
    """Fewer samples than features."""
    spread = torch.logspace(0, -1, 200)

    def thin(count):
        z, labels = draw(count, width=200)
        return z * spread, labels

    z, labels = thin(150)
    test = torch.cat([thin(100)[0], thin(100)[0] + 0.5 * torch.randn(100, 200)])
    is_unknown = np.repeat([0, 1], 100)
    ours = MahalanobisPP(None, normalize=False).fit_features(z, labels)
    theirs = ood.Mahalanobis(None).fit_features(z, labels)
    assert roc_auc_score(is_unknown, ours.predict_features(test)) > 0.99
    # what is left of theirs is rounding, which differs from machine to machine
    assert roc_auc_score(is_unknown, theirs.predict_features(test)) < 0.9


def test_mahalanobis_odin_moves_images_towards_their_class():
    images, labels = draw(120, width=48)
    images = images.unflatten(1, (3, 4, 4))
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    still = MahalanobisODIN(encoder, (0.5,) * 3, eps=0.0).fit([(images, labels)])
    moving = MahalanobisODIN(encoder, (0.5,) * 3, eps=0.01).fit([(images, labels)])
    plain = MahalanobisPP(encoder, normalize=False).fit([(images, labels)])
    torch.testing.assert_close(still(images), plain(images))
    assert (moving(images) < still(images)).all()
    # the step of a channel is in units of what it was divided by
    uneven = MahalanobisODIN(encoder, (0.5, 0.5, 1e6), eps=0.01).fit([(images, labels)])
    assert (uneven(images) > moving(images)).all()
