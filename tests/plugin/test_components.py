"""Losses and detectors as pytorch-ood components: what its own suite asks of its own."""

import inspect
import math
import textwrap
import warnings

import pytest
import torch
from pytorch_ood.api import DetectorInfo, LogitsDetector, LossInfo, ModelNotSetException, Task
from pytorch_ood.detector import Entropy, MaxLogit
from pytorch_ood.loss import OutlierExposureLoss
from pytorch_ood.utils import apply_reduction
from torch import nn

from isomax import (
    RMDPP,
    DisMaxHead,
    EntropicScore,
    FractionalProbabilityLoss,
    IsoMaxHead,
    IsoMaxLoss,
    IsoMaxPlusHead,
    MahalanobisPP,
    MaxMeanLogitEntropyScore,
    MinimumDistanceScore,
    PostHocDisMax,
    PostHocIsoMax,
    PostHocIsoMaxPlus,
    functional,
)

DETECTORS = [EntropicScore, MinimumDistanceScore, MaxMeanLogitEntropyScore]
LOSSES = [IsoMaxLoss, FractionalProbabilityLoss]
POST_HOC = [PostHocIsoMax, PostHocIsoMaxPlus, PostHocDisMax]
COMPONENTS = [*DETECTORS, *POST_HOC, MahalanobisPP, RMDPP, *LOSSES]
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


@pytest.mark.parametrize("component", COMPONENTS)
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
    logits = -torch.randn(2, 3, 4, 4).abs()
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


def code_blocks(component):
    """The examples in a docstring: what is indented below ``code-block``."""
    for block in inspect.getdoc(component).split(".. code-block:: python\n")[1:]:
        lines = block.splitlines()
        ends = [i for i, line in enumerate(lines) if line and not line.startswith(" ")]
        yield textwrap.dedent("\n".join(lines[: ends[0] if ends else None]))


@pytest.mark.parametrize("component", COMPONENTS)
def test_examples_run_in_an_empty_namespace(component):
    examples = list(code_blocks(component))
    assert examples
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in examples:
            exec(compile(example, f"<{component.__name__}>", "exec"), {})


def batch_of(kind):
    """Logits and targets of three classes, labels or class probabilities; none is an outlier."""
    logits = -torch.rand(8, 3)
    labels = torch.arange(8) % 3
    return logits, labels if kind == "labels" else torch.rand(8, 3).softmax(dim=1)


every_loss = pytest.mark.parametrize("loss_class", LOSSES)
every_kind = pytest.mark.parametrize("kind", ["labels", "probabilities"])


@every_loss
@every_kind
def test_outliers_do_not_change_the_loss(loss_class, kind):
    """What ``supervised=False`` in the info says."""
    assert not loss_class.info.supervised
    logits, target = batch_of(kind)
    outlier = torch.arange(8) % 3 == 0
    mixed = target.masked_fill(outlier if kind == "labels" else outlier[:, None], -1)
    criterion = loss_class()
    with pytest.warns(UserWarning, match="Discarding"):
        loss = criterion(logits, mixed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(loss, criterion(logits[~outlier], target[~outlier]))


@every_loss
@every_kind
def test_a_batch_of_only_outliers_has_loss_and_gradient_zero(loss_class, kind):
    logits, target = batch_of(kind)
    logits.requires_grad_()
    with pytest.warns(UserWarning, match="Discarding"):
        loss = loss_class()(logits, torch.full_like(target, -1))
    assert loss.shape == ()
    assert loss == 0
    loss.backward()
    assert (logits.grad == 0).all()


@every_loss
@every_kind
@pytest.mark.parametrize("outliers", [0, 3, 8])
@pytest.mark.filterwarnings("ignore:Discarding")
def test_every_reduction_is_finite_and_set_like_pytorch_oods(loss_class, kind, outliers):
    logits, target = batch_of(kind)
    target[:outliers] = -1
    criterion = loss_class(reduction=None)
    each = criterion(logits, target)
    assert each.shape == (8,)
    assert each.isfinite().all()
    assert (each[:outliers] == 0).all()
    for reduction in ("mean", "sum", "none"):
        criterion.reduction = reduction
        value = criterion(logits, target)
        assert value.isfinite().all()
        if reduction == "sum":
            torch.testing.assert_close(value, each.sum())
        if reduction == "mean" and outliers < 8:
            # an even number of samples: both halves of a batch of mosaics weigh the same
            expected = each[outliers:].mean() if (8 - outliers) % 2 == 0 else value
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("shape", [(8,), (2, 4, 4)])
@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.filterwarnings("ignore:Discarding")
def test_loss_supports_the_tasks_it_claims(shape, outliers):
    logits = -torch.randn(shape[0], 3, *shape[1:]).abs()
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


@pytest.mark.parametrize(
    "component",
    [IsoMaxLoss(), FractionalProbabilityLoss(), EntropicScore, MinimumDistanceScore,
     MaxMeanLogitEntropyScore, functional.minimum_distance_score,
     functional.max_mean_logit_entropy_score],
)  # fmt: skip
def test_logits_of_a_linear_layer_are_refused_and_those_of_a_head_never(component):
    features = torch.randn(16, 4)
    for head in (IsoMaxHead(4, 3), IsoMaxPlusHead(4, 3), DisMaxHead(4, 3, drop_in=True)):
        called(component, head.train(), features)
        called(component, head.double().eval(), features.double())
        called(component, head.bfloat16().eval(), features.bfloat16())
    with pytest.raises(ValueError, match="never positive: they are a linear classifier's; put Iso"):
        called(component, nn.Linear(4, 3), features)


def called(component, model, features):
    if isinstance(component, nn.Module):
        return component(model(features), torch.arange(len(features)) % 3)
    return component(model)(features) if isinstance(component, type) else component(model(features))


@pytest.mark.parametrize("of", [EntropicScore, MinimumDistanceScore, MaxMeanLogitEntropyScore])
def test_the_look_at_the_logits_is_in_no_compiled_or_exported_graph(of):
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = IsoMaxPlusHead(4, 3).eval()

        def forward(self, features):
            return of(None).predict_logits(self.head(features))

    features = torch.randn(5, 4)
    with torch.no_grad():
        expected = Scored()(features).shape
        exported = torch.export.export(Scored(), (features,))
        compiled = torch.compile(Scored(), backend="eager", fullgraph=True)
        assert exported.module()(features).shape == compiled(features).shape == expected


def test_loss_has_no_parameters_to_move():
    assert not list(IsoMaxLoss().parameters())
    assert (
        IsoMaxLoss()
        .to("meta")(
            torch.rand(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
        )
        .is_meta
    )


@every_loss
def test_bad_settings_are_refused(loss_class):
    with pytest.raises(ValueError, match="entropic_scale is 0"):
        loss_class(entropic_scale=0)
    with pytest.raises(ValueError, match="mean, sum, none"):
        loss_class(reduction="median")


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
