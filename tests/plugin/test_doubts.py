"""What makes a model no good is said; a model that is good is left in peace."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn

from isomax import DisMaxHead, IsoMaxHead, IsoMaxLoss, IsoMaxPlusHead, doubts
from isomax.calibration import Calibration
from isomax.functional import SCORES, entropic_score
from isomax.starting import start_at_means, start_at_zero


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.001, 0.999))
def test_binomial_tail_is_scipys(trials, share, probability):
    successes = round(share * trials)
    expected = float(binom.sf(successes - 1, trials, probability))
    assert doubts.binomial_tail(successes, trials, probability) == pytest.approx(
        expected, rel=1e-8, abs=1e-200
    )


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_binomial_tail_of_certainties(probability):
    assert doubts.binomial_tail(0, 5, probability) == 1
    assert doubts.binomial_tail(3, 5, probability) == probability


def test_guessing_is_doubted_and_what_has_learned_a_little_is_not():
    labels = torch.arange(200) % 10
    doubted = [
        doubts.of_accuracy(
            torch.randint(10, (200,), generator=torch.Generator().manual_seed(s)), labels
        )
        for s in range(40)
    ]
    assert sum(map(bool, doubted)) >= 35
    some = torch.where(torch.arange(200) < 50, labels, (labels + 1) % 10)
    assert doubts.of_accuracy(some, labels) == ""


def test_the_largest_class_is_what_accuracy_is_held_against():
    labels = torch.tensor([0] * 90 + [1] * 10)
    doubt = doubts.of_accuracy(torch.zeros_like(labels), labels)
    assert "90 of 100 images are classified right" in doubt
    assert "naming the largest class, 90 of them" in doubt
    assert doubts.of_accuracy(labels, labels) == ""


def test_outliers_do_not_count_for_accuracy():
    labels = torch.tensor([0, 1] * 20 + [-1] * 100)
    assert doubts.of_accuracy(labels.clamp(min=0), labels) == ""
    assert "20 of 40" in doubts.of_accuracy(torch.zeros_like(labels), labels)


@pytest.mark.parametrize("classes", [2, 8, 1000])
def test_entropies_at_their_limit_are_all_one_score(classes):
    logits = -1.4 - 1e-6 * torch.rand(200, classes)
    doubt = doubts.of_scores(entropic_score(logits), classes)
    assert f"the entropy of {classes} equal posteriors" in doubt
    assert doubts.of_scores(entropic_score(logits - torch.rand(200, classes)), classes) == ""


def test_a_head_that_has_just_started_is_doubted_at_zero_and_not_at_class_means():
    torch.manual_seed(0)
    labels = torch.arange(200) % 20
    features = torch.randn(20, 64)[labels] + torch.randn(200, 64)
    at_zero, at_means = IsoMaxHead(64, 20), IsoMaxPlusHead(64, 20)
    start_at_zero(at_zero)
    start_at_means(at_means, features, labels)
    with torch.no_grad():
        for head, doubted in ((at_zero, True), (at_means, False)):
            scores = SCORES["entropic_score"](head(features))
            assert bool(doubts.of_scores(scores, 20)) == doubted
            assert bool(doubts.of_accuracy(head(features).argmax(dim=1), labels)) == doubted
            assert doubts.of_distance_scale(head) == ""


def test_scores_that_are_equal_elsewhere_are_named_too():
    doubt = doubts.of_scores(torch.full((7,), 3.5), 10)
    assert "all 7 scores are 3.5 but for rounding" in doubt
    assert doubts.of_scores(torch.tensor([3.5]), 10) == ""


def test_a_distance_scale_that_runs_to_zero_is_named():
    """From prototypes at N(0, 1), which hardly move: the scale falls."""
    torch.manual_seed(0)
    features, labels = torch.randn(100, 64).abs(), torch.arange(100) % 10
    head = IsoMaxPlusHead(64, 10)
    assert doubts.of_distance_scale(head) == ""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        IsoMaxLoss()(head(features), labels).backward()
        optimizer.step()
    doubt = doubts.of_distance_scale(head)
    assert f"the distance scale is {abs(head.distance_scale.item()):.2g}" in doubt
    assert "10 classes" in doubt
    assert "start them at the class means" in doubt


@pytest.mark.parametrize("head_class", [IsoMaxPlusHead, DisMaxHead])
@pytest.mark.parametrize("classes", [2, 10, 1000, 20_000])
def test_a_scale_is_too_small_where_a_perfect_match_has_no_posterior(head_class, classes):
    head = head_class(2, classes, device="meta").to_empty(device="cpu")
    nn.init.ones_(head.distance_scale)
    assert doubts.of_distance_scale(head) == ""
    nn.init.constant_(head.distance_scale, -0.02)
    assert doubts.of_distance_scale(head)


def test_a_threshold_that_nothing_can_exceed_is_named():
    largest = doubts.largest_score("entropic_score", 10)
    uniform = float(entropic_score(torch.zeros(1, 10)))
    assert "no image will be called unknown" in doubts.of_threshold(uniform, largest)
    assert doubts.of_threshold(largest - 1e-4, largest) == ""
    assert doubts.of_threshold(math.inf, 3.0)
    assert doubts.of_threshold(math.inf, math.inf)
    assert doubts.of_threshold(1e30, math.inf) == ""


@pytest.mark.parametrize("head_class", [IsoMaxPlusHead, DisMaxHead])
@pytest.mark.parametrize("score", SCORES)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-3, 3))
def test_no_score_is_above_the_largest(head_class, score, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    head = head_class(4, 3)
    with torch.no_grad():
        head.prototypes.copy_(torch.randn(3, 4, generator=generator))
        head.distance_scale.fill_(scale)
        features = torch.randn(20, 4, generator=generator)
        # opposite to all prototypes, as far as it goes
        features[0] = -head.prototypes.sum(dim=0)
        scores = SCORES[score](head(features))
    assert scores.max() <= doubts.largest_score(score, 3, head) * (1 + 1e-6)


def test_scores_of_distances_without_a_scale_have_no_bound():
    assert doubts.largest_score("minimum_distance_score", 3, IsoMaxHead(4, 3)) == math.inf
    assert doubts.largest_score("max_mean_logit_entropy_score", 3) == math.inf
    with pytest.raises(ValueError, match="unknown score 'energy'; choose from entropic_score"):
        doubts.largest_score("energy", 3)


def test_a_loss_that_has_not_fallen_is_named():
    assert "from 2.3 in the first epoch to 2.4 in the last" in doubts.of_loss([2.3, 2.2, 2.4], 10)
    assert doubts.of_loss([2.3, 2.4, 2.2], 10) == ""
    assert doubts.of_loss([0.01, 0.02], 10) == ""  # learned in the first epoch
    assert doubts.of_loss([2.3], 10) == ""
    assert doubts.of_loss([2.3, math.nan], 10)


@pytest.mark.parametrize(
    ("samples", "alpha"), [(19, 0.05), (38, 0.05), (39, 0.05), (18, 0.1), (19, 0.1)]
)
def test_one_image_decides_where_few_calibrate(samples, alpha):
    logits = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.fit(logits, torch.arange(samples) % 3, "entropic_score", alpha)
    few = calibration.threshold >= max(calibration.scores)
    assert few == (samples < (2 - alpha) / alpha)
    assert (f"of {samples} calibration images" in doubts.of_calibration(samples, alpha)) == few


def test_more_than_alpha_at_the_largest_score_is_named():
    """As of OpenMax, whose largest score is 1, and of many identical images."""
    scores = [0.1] * 90 + [1.0] * 9
    assert "9 of 99 calibration images share the largest score, 1," in doubts.of_ties(scores, 0.05)
    assert "an alpha of more than 0.1" in doubts.of_ties(scores, 0.05)
    assert doubts.of_ties(scores, 0.1) == ""
    near = [*scores[:90], *(1.0 - 1e-7 * place for place in range(9))]
    assert doubts.of_ties(near, 0.05) == ""
    assert "9 of 99" in doubts.of_ties(near, 0.05, tolerance=1e-6)
    assert doubts.of_ties([1.0, 2.0], 0.05) == ""  # too few, which of_calibration says
