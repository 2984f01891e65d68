import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from isomax import IsoMaxHead, IsoMaxLoss, RejectionThreshold, fit_temperature
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
