"""Losses and detectors as pytorch-ood components: what its own suite asks of its own."""

import inspect
import math

import pytest
import torch
from pytorch_ood.api import DetectorInfo, LogitsDetector, LossInfo, ModelNotSetException, Task
from pytorch_ood.detector import Entropy, MaxLogit
from pytorch_ood.loss import OutlierExposureLoss
from pytorch_ood.utils import apply_reduction
from torch import nn

from isomax import (
    DisMaxHead,
    EntropicScore,
    FractionalProbabilityLoss,
    IsoMaxHead,
    IsoMaxLoss,
    IsoMaxPlusHead,
    MaxMeanLogitEntropyScore,
    MinimumDistanceScore,
)

DETECTORS = [EntropicScore, MinimumDistanceScore, MaxMeanLogitEntropyScore]
LOSSES = [IsoMaxLoss, FractionalProbabilityLoss]
every_detector = pytest.mark.parametrize("detector_class", DETECTORS)


HEAD_OF = {
    EntropicScore: IsoMaxHead,
    MinimumDistanceScore: IsoMaxPlusHead,
    MaxMeanLogitEntropyScore: DisMaxHead,
}


def trained_model(head_class):
    """Three well-separated classes on a circle, learned by the head."""
    torch.manual_seed(0)
    angles = torch.arange(90) % 3 * 2 * torch.pi / 3
    points = 4 * torch.stack([angles.cos(), angles.sin()], dim=1) + 0.2 * torch.randn(90, 2)
    labels = torch.arange(90) % 3
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8), head_class(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        IsoMaxLoss()(model(points), labels).backward()
        optimizer.step()
    return model.eval(), points


@pytest.mark.parametrize("component", [*DETECTORS, *LOSSES])
def test_info_is_the_components_own(component):
    assert "info" in vars(component)
    assert isinstance(component.info, LossInfo if component in LOSSES else DetectorInfo)
    assert component.info.tasks
    assert component.info.paper.url.startswith("https://arxiv.org/abs/")
    assert inspect.getdoc(component)


@every_detector
def test_scores_are_larger_for_outliers(detector_class):
    model, inliers = trained_model(HEAD_OF[detector_class])
    detector = detector_class(model)
    outliers = 0.3 * torch.randn(30, 2)
    with torch.no_grad():
        assert detector.predict(outliers).mean() > detector.predict(inliers).mean()


@every_detector
def test_predict_is_predict_logits_of_the_model(detector_class):
    model, inliers = trained_model(HEAD_OF[detector_class])
    detector = detector_class(model)
    assert isinstance(detector, LogitsDetector)
    assert not detector.requires_fit
    assert detector.fit(None) is detector
    with torch.no_grad():
        scores = detector(inliers)
        torch.testing.assert_close(scores, detector_class(None).predict_logits(model(inliers)))
    assert scores.shape == (90,)


@every_detector
def test_without_a_model_predict_says_so(detector_class):
    with pytest.raises(ModelNotSetException):
        detector_class(None).predict(torch.rand(2, 3))


@every_detector
def test_segmentation_scores_each_pixel(detector_class):
    assert Task.SEGMENTATION in detector_class.info.tasks
    logits = torch.randn(2, 3, 4, 4)
    scores = detector_class(None).predict_logits(logits)
    assert scores.shape == (2, 4, 4)
    as_samples = detector_class(None).predict_logits(logits.permute(0, 2, 3, 1).reshape(-1, 3))
    torch.testing.assert_close(scores, as_samples.reshape(2, 4, 4))


@every_detector
def test_device_moves_take_the_model_along(detector_class):
    detector = detector_class(IsoMaxHead(4, 3)).to("meta")
    assert detector.device == torch.device("meta")
    assert detector.model.prototypes.is_meta
    assert detector.predict(torch.rand(2, 4)).is_meta


def test_scores_agree_with_pytorch_oods_where_they_mean_the_same():
    logits = -5 * torch.rand(20, 4)
    torch.testing.assert_close(
        EntropicScore(None).predict_logits(logits), Entropy(None).predict_logits(logits)
    )
    torch.testing.assert_close(
        MinimumDistanceScore(None).predict_logits(logits), MaxLogit(None).predict_logits(logits)
    )


@pytest.mark.parametrize("shape", [(8,), (2, 4, 4)])
@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.filterwarnings("ignore:Discarding")
def test_loss_supports_the_tasks_it_claims(shape, outliers):
    logits = torch.randn(shape[0], 3, *shape[1:])
    target = torch.arange(torch.Size(shape).numel()).reshape(shape) % 4 - 1
    target = target if outliers else target.clamp(min=0)
    loss = IsoMaxLoss()(logits, target)
    assert loss.dim() == 0
    assert loss.isfinite()
    each = IsoMaxLoss(reduction=None)(logits, target)
    assert each.shape == shape
    torch.testing.assert_close(IsoMaxLoss(reduction="sum")(logits, target), each.sum())
    if not outliers:
        torch.testing.assert_close(loss, apply_reduction(each, "mean"))


def test_loss_has_no_parameters_to_move():
    assert not list(IsoMaxLoss().parameters())
    assert (
        IsoMaxLoss()
        .to("meta")(
            torch.rand(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
        )
        .is_meta
    )


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="entropic_scale is 0"):
        IsoMaxLoss(entropic_scale=0)
    with pytest.raises(ValueError, match="mean, sum, none"):
        IsoMaxLoss(reduction="median")


def test_fractional_probability_loss_is_zero_at_its_target():
    target = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    logits = target.clamp(min=1e-30).log() / 10
    assert FractionalProbabilityLoss()(logits, target).abs() < 1e-6


def test_outlier_exposure_on_top_raises_the_entropy_of_outliers():
    """The documented way: pytorch-ood's loss on the logits times the entropic scale."""
    torch.manual_seed(0)
    inliers = torch.randn(60, 2) * 0.3 + torch.tensor([[3.0, 0.0], [-3.0, 0.0]]).repeat(30, 1)
    outliers = torch.randn(60, 2) * 0.3 + torch.tensor([[6.0, 4.0]])
    points = torch.cat([inliers, outliers])
    labels = torch.cat([torch.arange(60) % 2, torch.full((60,), -1)])

    def entropy_after(criterion, drop_in):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8), IsoMaxHead(8, 2, drop_in=drop_in)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            criterion(model(points), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(inliers).argmax(dim=1) == labels[:60]).float().mean()
            return EntropicScore(model)(outliers).mean(), accuracy

    with pytest.warns(UserWarning, match="Discarding"):
        without, _ = entropy_after(IsoMaxLoss(), drop_in=False)
    scaled, accuracy = entropy_after(lambda z, y: OutlierExposureLoss()(10.0 * z, y), False)
    drop_in, _ = entropy_after(OutlierExposureLoss(), drop_in=True)
    assert accuracy == 1
    assert without < 0.9 * math.log(2)
    assert scaled > 0.99 * math.log(2)
    torch.testing.assert_close(drop_in, scaled)
