import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from isomax import IsoMaxHead, IsoMaxLoss, RejectionThreshold, calibration, fit_temperature
from isomax.calibration import expected_calibration_error, threshold_curve


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


@given(st.integers(1, 60), st.integers(1, 99))
def test_curve_holds_the_threshold_of_every_alpha(samples, percent):
    scores = torch.rand(samples, generator=torch.Generator().manual_seed(samples))
    alpha, curve = percent / 100, threshold_curve(scores)
    usable = [value for rate, value in curve if rate <= alpha + 1e-12]
    if RejectionThreshold(alpha).samples_needed > samples:
        assert not usable
    else:
        assert usable[-1] == float(RejectionThreshold(alpha).fit(scores).value)


def test_a_thinned_curve_is_only_more_careful():
    scores = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    curve = threshold_curve(scores)
    assert len(curve) <= 2000
    assert curve[0] == (1 / 50_001, float(scores.max()))
    assert [rate for rate, _ in curve] == sorted(rate for rate, _ in curve)
    for alpha in (1e-4, 0.01, 0.05, 0.3):
        exact = float(RejectionThreshold(alpha).fit(scores).value)
        kept = [value for rate, value in curve if rate <= alpha + 1e-12][-1]
        assert exact <= kept <= exact * 1.02


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
