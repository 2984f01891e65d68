import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from isomax import IsoMaxHead, IsoMaxLoss, RejectionThreshold, calibration, fit_temperature
from isomax.calibration import (
    MOST_SAMPLES,
    Calibration,
    attainable_p_values,
    expected_calibration_error,
    p_values,
)


@pytest.fixture(scope="module")
def digits_logits():
    """Held-out logits and labels of an IsoMax head trained on raw digits."""
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), IsoMaxHead(32, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(60):
        optimizer.zero_grad()
        IsoMaxLoss()(model(pixels[:900]), labels[:900]).backward()
        optimizer.step()
    with torch.no_grad():
        return model(pixels[900:]), labels[900:]


def test_temperature_lowers_the_calibration_error_and_keeps_the_classes(digits_logits):
    logits, labels = digits_logits
    half = len(logits) // 2
    temperature = fit_temperature(logits[:half], labels[:half])
    assert 0.01 < temperature < 0.5  # under-confident by design
    before = expected_calibration_error(logits[half:], labels[half:])
    after = expected_calibration_error(logits[half:] / temperature, labels[half:])
    assert after < before / 3
    assert torch.equal((logits / temperature).argmax(dim=1), logits.argmax(dim=1))


def test_temperature_minimises_the_negative_log_likelihood(digits_logits):
    logits, labels = (tensor.repeat(50, *[1] * (tensor.dim() - 1)) for tensor in digits_logits)
    best = fit_temperature(logits, labels)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(logits.double() / temperature, labels)

    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))


@given(
    st.integers(2, 40),
    st.integers(1, 400),
    st.floats(-3, 3),
    st.floats(0, 8),
    st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=60)
def test_temperature_is_the_root_that_bisection_finds(classes, size, decades, margin, seed):
    """In float64 and all at once, sixty times: what it was before it took a few passes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    logits[torch.arange(size), labels] += margin
    logits = logits * 10**decades - 100 * 10**decades
    exact, smoothing = logits.double(), 1 / (size + 2)
    right = exact[torch.arange(size), labels].mean()
    target = (1 - smoothing) * right + smoothing * exact.mean()
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        posteriors = (exact * math.exp(middle)).softmax(dim=1)
        if (posteriors * exact).sum(dim=1).mean() > target:
            high = middle
        else:
            low = middle
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(-low), rel=1e-4)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-6), (torch.bfloat16, 1e-2)])
def test_temperature_in_other_precisions(digits_logits, dtype, near):
    logits, labels = digits_logits
    expected = fit_temperature(logits, labels)
    assert fit_temperature(logits.to(dtype), labels) == pytest.approx(expected, rel=near)


def test_temperature_of_large_logits_takes_few_passes_and_little_memory(monkeypatch):
    """A block at a time; of 60 passes over all, it was four minutes for 10,000 x 10,000."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 500, generator=generator)
    labels = torch.randint(500, (2000,), generator=generator)
    logits[torch.arange(2000), labels] += 5 * torch.rand(2000, generator=generator)
    whole = fit_temperature(logits, labels)
    seen, original = [], torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda t, dim: seen.append(t.numel()) or original(t, dim)
    )
    monkeypatch.setattr(calibration, "_ELEMENTS_AT_ONCE", 50_000)
    assert fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-6)
    assert max(seen) <= 50_000
    assert sum(seen) <= 12 * logits.numel()


@pytest.mark.parametrize(("right", "bound"), [(False, 1e3), (True, 1e-3)])
def test_temperature_ends_at_its_bounds(right, bound):
    logits = torch.eye(3).repeat(40, 1) * 1e-4
    labels = torch.arange(3).repeat(40) if right else (torch.arange(3).repeat(40) + 1) % 3
    assert fit_temperature(logits, labels) == pytest.approx(bound, rel=1e-3)


def test_temperature_of_data_that_are_all_classified_right_is_not_zero():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    temperature = fit_temperature(logits, torch.tensor([0, 1]).repeat(50))
    confidence = float((logits / temperature).softmax(dim=1)[0, 0])
    assert confidence == pytest.approx(1 - 1 / 102 / 2, abs=1e-4)


def test_calibration_error_of_a_known_case():
    # confidence one half, accuracy one
    assert expected_calibration_error(torch.zeros(4, 2), torch.zeros(4, dtype=int)) == 0.5


@given(st.floats(0.01, 0.9), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=30)
def test_false_alarm_rate_is_at_most_alpha(alpha, seed):
    """The guarantee, over many draws of held-out and fresh samples."""
    threshold = RejectionThreshold(alpha)
    samples = threshold.samples_needed + 3
    scores = torch.from_numpy(np.random.default_rng(seed).exponential(size=(2000, samples + 1)))
    rejected = sum(bool(RejectionThreshold(alpha).fit(row[:-1]).rejects(row[-1])) for row in scores)
    # four standard deviations of the binomial
    assert rejected / 2000 <= alpha + 4 * (alpha * (1 - alpha) / 2000) ** 0.5


@given(st.floats(0.001, 0.999))
def test_samples_needed_is_exactly_enough(alpha):
    needed = RejectionThreshold(alpha).samples_needed
    RejectionThreshold(alpha).fit(torch.rand(needed))
    if needed > 1:
        with pytest.raises(ValueError, match=f"at least {needed} held-out samples"):
            RejectionThreshold(alpha).fit(torch.rand(needed - 1))


def test_nineteen_samples_for_five_percent():
    assert RejectionThreshold(0.05).samples_needed == 19
    assert RejectionThreshold(0.01).samples_needed == 99


def test_one_threshold_per_predicted_class():
    torch.manual_seed(0)
    predicted = torch.arange(400) % 2
    scores = torch.rand(400) + 10 * predicted
    threshold = RejectionThreshold(0.1).fit(scores, predicted)
    assert threshold.value.shape == (2,)
    for label in (0, 1):
        chosen = predicted == label
        rate = threshold.rejects(scores[chosen], predicted[chosen]).float().mean()
        assert 0 < rate <= 0.1
    with pytest.raises(ValueError, match="predicted classes to both"):
        threshold.rejects(scores)


def test_nan_scores_are_rejected():
    threshold = RejectionThreshold(0.5).fit(torch.rand(10))
    assert threshold.rejects(torch.tensor([torch.nan])).all()


@given(st.integers(1, 20_000), st.data())
@settings(deadline=None)
def test_p_values_are_the_largest_float32_not_above_the_fraction(samples, data):
    rank = data.draw(st.integers(1, samples + 1))
    fraction = Fraction(rank, samples + 1)
    value = attainable_p_values(samples)[rank - 1]
    assert Fraction(float(value)) <= fraction < Fraction(float(value.nextafter(torch.tensor(2.0))))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 99))
def test_p_values_at_most_alpha_are_what_the_threshold_rejects(scores, percent):
    """Ties, infinities and NaN too; alpha as clients have it, in double precision."""
    calibration, alpha = torch.tensor(scores, dtype=torch.float32), percent / 100
    fresh = torch.tensor([*range(-1, 32), math.inf, -math.inf, math.nan])
    found = p_values(fresh, calibration)
    counts = torch.stack([(calibration >= score).sum() for score in fresh])
    assert torch.equal(found, attainable_p_values(len(scores))[counts])
    threshold = RejectionThreshold(alpha)
    if threshold.samples_needed > len(scores):
        assert not (found.double() <= alpha).any()
    else:
        rejected = threshold.fit(calibration).rejects(fresh)
        assert torch.equal(found.double() <= alpha, rejected)


@pytest.mark.parametrize("samples", [19, 99, 199, 999])
def test_one_twentieth_is_rejected_at_five_percent(samples):
    """The float32 next to it, in double precision, is larger than 0.05."""
    scores = torch.arange(samples, dtype=torch.float32)
    twentieth = scores[-((samples + 1) // 20)] + 0.5  # k / (n + 1) is 1/20
    value = p_values(twentieth[None], scores)
    assert float(torch.tensor(0.05)) > 0.05
    assert 0.05 - 1e-8 < float(value) <= 0.05


KEY = torch.tensor([1.0, 1e3, 1e6, 1e9], dtype=torch.float64)  # another number for other logits


def test_of_many_images_ten_thousand_calibrate_everything():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(MOST_SAMPLES + 5_000, 4, generator=generator)
    labels = torch.randint(4, (len(logits),), generator=generator)
    found = Calibration.fit(logits, labels)
    assert found == Calibration.fit(logits, labels)
    assert found.samples == len(found.scores) == MOST_SAMPLES
    every = found.score_of(logits)
    drawn = torch.isin(logits.double() @ KEY, found.outputs["logits"].double() @ KEY)
    assert drawn.sum() == MOST_SAMPLES
    assert 0 < drawn[:MOST_SAMPLES].sum() < MOST_SAMPLES  # not the first ones
    assert torch.equal(found.outputs["scores"], found.score_of(found.outputs["logits"]))
    expected = RejectionThreshold(0.05).fit(every[drawn]).value
    assert found.threshold == pytest.approx(float(expected), rel=1e-5)
    assert found.temperature == pytest.approx(fit_temperature(logits[drawn], labels[drawn]))
    rejected = found.p_value_of(logits).double() <= 0.05
    assert torch.equal(rejected, every > found.threshold)
    few = Calibration.fit(logits[:50], labels[:50])
    assert few.scores == sorted(every[:50].tolist())


def test_all_scores_come_back_from_json():
    logits = -torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    found = Calibration.fit(logits, torch.arange(60) % 3)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["samples"] == 60
    assert Calibration.from_dict(content) == found
    with pytest.raises(ValueError, match="1 of 60 scores are NaN"):
        Calibration.from_dict(content | {"scores": [math.nan, *found.scores[1:]]})


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    st.data(),
)
@settings(deadline=None)
def test_every_rate_rejects_what_has_a_p_value_of_at_most_that(scores, tolerance, data):
    """Where alpha is one of the p-values too, as float32 or as a quotient in double precision, as
    the Benjamini-Hochberg procedure has it; and beside it."""
    samples, fresh = len(scores), torch.tensor([*range(-1, 18), math.nan, math.inf])
    rank = data.draw(st.integers(1, samples))
    exact, single = rank / (samples + 1), float(attainable_p_values(samples)[rank - 1])
    logits, labels = torch.eye(2)[torch.arange(samples) % 2], torch.arange(samples) % 2
    for alpha, rejected in (
        (exact, rank),
        (single, rank),
        (math.nextafter(single, 0), rank - 1),
        (math.nextafter(single, 1), rank),
    ):
        if not rejected:
            with pytest.raises(ValueError, match="held-out samples"):
                RejectionThreshold(alpha).fit(torch.tensor(scores).float())
            continue
        found = Calibration.fit(logits, labels, "any", alpha, torch.tensor(scores).float())
        found = found.with_scores(torch.tensor(scores), tolerance)
        ties = (torch.tensor(scores)[:, None] + found.tolerance >= fresh).sum(dim=0)
        assert torch.equal(found.rejects(fresh), 1 + ties <= rejected)
        assert torch.equal(found.rejects(fresh), found.p_values(fresh).double() <= alpha)
        assert torch.equal(found.rejects(fresh), ~(fresh <= found.threshold))


def test_scores_that_other_software_gives_tie_in_the_images_favour():
    calibration = torch.tensor([1.0] * 12 + [0.5] * 7)
    above = torch.tensor([1.0]).nextafter(torch.tensor([2.0]))
    assert float(p_values(above, calibration)) == pytest.approx(1 / 20)
    assert float(p_values(above, calibration, 1e-6)) == pytest.approx(13 / 20)
    logits, labels = torch.eye(2)[torch.arange(19) % 2], torch.arange(19) % 2
    found = Calibration.fit(logits, labels, "any", 0.05, calibration)
    assert not found.rejects(above).any()
    assert found.rejects(above + 1e-5).all()


def test_logits_that_are_no_numbers_are_rejected():
    logits = -torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    found = Calibration.fit(logits, logits.argmax(dim=1), "minimum_distance_score", 0.1)
    bad = torch.zeros(4, 3)
    bad[:, 0] = torch.tensor([math.nan, -math.inf, -math.inf, 0])
    smallest = attainable_p_values(60)[0]
    assert (found.p_value_of(bad) == smallest).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RejectionThreshold(0), r"expected a fraction in \(0, 1\)"),
        (lambda: RejectionThreshold(5), "for 5% pass 0.05"),
        (lambda: RejectionThreshold(0.5).fit(torch.tensor([torch.nan, 1.0])), "1 of 2 scores"),
        (lambda: RejectionThreshold(0.5).fit(torch.tensor([])), "no scores"),
        (lambda: RejectionThreshold(0.5).rejects(torch.rand(3)), "call fit"),
        (
            lambda: RejectionThreshold(0.5).fit(torch.rand(9), torch.tensor([0] * 8 + [2])),
            "got 0 predicted as class 1",
        ),
        (lambda: fit_temperature(torch.rand(3, 2), torch.tensor([0, 1])), r"\[N, C\] and \[N\]"),
        (lambda: fit_temperature(torch.rand(2, 2), torch.tensor([0, -1])), "in-distribution"),
        (
            lambda: fit_temperature(torch.tensor([[torch.inf, 0.0]]), torch.tensor([0])),
            "not finite",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
