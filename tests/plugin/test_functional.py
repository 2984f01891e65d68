"""The formulas against float64, on ordinary and on hard inputs; invariants as properties."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood.detector import EnergyBased
from torch.autograd import gradcheck, gradgradcheck

from isomax import functional as fn

EPS = torch.finfo(torch.float32).eps


def by_definition(features, prototypes):
    """Distances straight from the definition, in float64."""
    difference = features.double()[:, None] - prototypes.double()[None]
    return difference.norm(dim=2)


def rotation(width, generator):
    return torch.linalg.qr(torch.randn(width, width, generator=generator).double()).Q


seeds = st.integers(0, 2**31 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
sizes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(2, 7))  # B, D, C


def draw(generator, size):
    batch, width, classes = size
    return (
        torch.randn(batch, width, generator=generator, dtype=torch.float64),
        torch.randn(classes, width, generator=generator, dtype=torch.float64),
    )


# -- Accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 7, 512, 4096])
@pytest.mark.parametrize("norms", [(1.0, 1.0), (1e-4, 1e-4), (1e4, 1e4), (1e4, 1e-4)])
def test_distances_are_right_to_1e_5_away_from_coincidence(width, norms):
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(16, width)) * norms[0]
    prototypes = torch.nn.functional.normalize(torch.randn(50, width)) * norms[1]
    exact = by_definition(features, prototypes)
    away = exact >= (features.norm(dim=1)[:, None] + prototypes.norm(dim=1)) / 4
    distances = fn.isomax_distances(features, prototypes).double()
    assert away.any()
    assert ((distances - exact).abs() <= 1e-5 * exact)[away].all()


def test_distances_with_22000_classes():
    torch.manual_seed(0)
    features, prototypes = torch.randn(4, 1024), torch.randn(22000, 1024)
    exact = by_definition(features, prototypes)
    torch.testing.assert_close(
        fn.isomax_distances(features, prototypes).double(), exact, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("width", [3, 64, 4096])
@pytest.mark.parametrize("norm", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1e-6, 1e-3, 1e-1])
def test_accuracy_near_coincidence_is_as_stated(width, norm, offset):
    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(40, width)) * norm
    features = prototypes[:20] + offset * norm * torch.nn.functional.normalize(
        torch.randn(20, width)
    )
    exact = by_definition(features, prototypes)
    scale = features.double().norm(dim=1)[:, None] + prototypes.double().norm(dim=1)
    distances = fn.isomax_distances(features, prototypes).double()
    assert ((distances.square() - exact.square()).abs() <= 8 * EPS * scale.square()).all()
    assert ((distances - exact).abs() <= 1e-3 * scale).all()


@pytest.mark.parametrize("head", ["isomax", "isomax+", "dismax"])
def test_formulas(head):
    torch.manual_seed(0)
    features, prototypes, scale = torch.randn(5, 8), torch.randn(3, 8), torch.tensor(-1.7)
    if head == "isomax":
        actual, expected = (
            fn.isomax_distances(features, prototypes),
            by_definition(features, prototypes),
        )
    else:
        directions = by_definition(
            features / features.norm(dim=1, keepdim=True),
            prototypes / prototypes.norm(dim=1, keepdim=True),
        )
        if head == "isomax+":
            actual = fn.isomaxplus_distances(features, prototypes, scale)
            expected = 1.7 * directions
        else:
            actual = fn.dismax_logits(fn.dismax_distances(features, prototypes, scale))
            distances = 1.7 * directions / math.sqrt(2)
            expected = -(distances + distances.mean(dim=1, keepdim=True))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def hard_inputs():
    torch.manual_seed(0)
    prototypes = torch.randn(4, 6)
    return {
        "features equal to a prototype": (prototypes[[0, 2]].clone(), prototypes),
        "zero prototypes": (torch.randn(3, 6), torch.zeros(4, 6)),
        "zero features": (torch.zeros(3, 6), prototypes),
        "all zero": (torch.zeros(3, 6), torch.zeros(4, 6)),
        "norms 1e-4": (torch.randn(3, 6) * 1e-4, prototypes * 1e-4),
        "norms 1e4": (torch.randn(3, 6) * 1e4, prototypes * 1e4),
    }


@pytest.mark.parametrize("case", hard_inputs())
@pytest.mark.parametrize("distance", ["isomax", "isomax+", "dismax"])
def test_loss_and_gradients_are_finite_on_hard_inputs(case, distance):
    features, prototypes = (tensor.requires_grad_() for tensor in hard_inputs()[case])
    scale = torch.ones((), requires_grad=True)
    if distance == "isomax":
        logits, parameters = -fn.isomax_distances(features, prototypes), (features, prototypes)
    elif distance == "isomax+":
        logits = -fn.isomaxplus_distances(features, prototypes, scale)
        parameters = (features, prototypes, scale)
    else:
        logits = fn.dismax_logits(fn.dismax_distances(features, prototypes, scale))
        parameters = (features, prototypes, scale)
    loss = fn.isomax_loss(logits, torch.arange(len(features)))
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e6


# -- Gradients ---------------------------------------------------------------------------------


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradcheck_of_the_distances():
    torch.manual_seed(0)
    assert gradcheck(fn.isomax_distances, (double(4, 5), double(3, 5)))
    assert gradgradcheck(fn.isomax_distances, (double(2, 3), double(3, 3)))
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(fn.isomaxplus_distances, (double(4, 5), double(3, 5), scale))
    assert gradcheck(fn.dismax_distances, (double(4, 5), double(3, 5), scale))


def test_gradcheck_at_distance_zero():
    torch.manual_seed(0)
    prototypes = double(3, 5)
    features = prototypes.detach()[[0, 1]].clone().requires_grad_()
    # a wide step: the expansion's rounding would drown the difference of a narrow one
    assert gradcheck(fn.isomax_distances, (features, prototypes), eps=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(
        fn.isomax_distances(features, prototypes)[0, 0], [features, prototypes]
    )
    assert all((g == 0).all() for g in gradient)


def test_gradients_equal_those_of_the_definition():
    torch.manual_seed(0)
    features, prototypes = double(6, 7), double(4, 7)
    weights = torch.randn(6, 4, dtype=torch.float64)
    ours = torch.autograd.grad(
        (weights * fn.isomax_distances(features, prototypes)).sum(), [features, prototypes]
    )
    theirs = torch.autograd.grad(
        (weights * (features[:, None] - prototypes).norm(dim=2)).sum(), [features, prototypes]
    )
    torch.testing.assert_close(ours, theirs)


# -- Half precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_are_computed_in_float32_under_autocast(dtype):
    torch.manual_seed(0)
    # norms of 1000: their squares overflow half precision
    features = torch.randn(4, 16) * 250
    prototypes = torch.randn(3, 16) * 250
    features.requires_grad_()
    expected = fn.isomax_distances(features, prototypes)
    with torch.autocast("cpu", dtype):
        distances = fn.isomax_distances(features, prototypes)
        (gradient,) = torch.autograd.grad(distances.sum(), features)
    assert distances.dtype == torch.float32
    assert torch.equal(distances, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), features)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_upcast(dtype):
    features = torch.full((1, 4), 300.0, dtype=dtype)
    prototypes = torch.zeros(2, 4, dtype=dtype)
    distances = fn.isomax_distances(features, prototypes)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, torch.full((1, 2), 600.0))


# -- Loss --------------------------------------------------------------------------------------


@given(seeds, sizes)
def test_loss_equals_the_two_step_form_where_that_is_finite(generator, size):
    batch, _, classes = size
    logits = -torch.rand(batch, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(classes, (batch,), generator=generator)
    two_step = -(10 * logits).softmax(dim=1)[torch.arange(batch), labels].log().mean()
    torch.testing.assert_close(fn.isomax_loss(logits, labels), two_step)


def test_loss_is_finite_where_the_two_step_form_is_not():
    logits = torch.tensor([[0.0, -50.0, -60.0]])
    assert (10 * logits).softmax(dim=1)[0, 1].log().isinf()
    assert fn.isomax_loss(logits, torch.tensor([1])) == 500


def test_reductions_and_soft_labels():
    torch.manual_seed(0)
    logits, labels = -torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    each = fn.isomax_loss(logits, labels, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(fn.isomax_loss(logits, labels), each.mean())
    torch.testing.assert_close(fn.isomax_loss(logits, labels, reduction="sum"), each.sum())
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(fn.isomax_loss(logits, one_hot), each.mean())
    mixed = 0.3 * one_hot + 0.7 * one_hot.roll(1, dims=0)
    expected = -(mixed * (10 * logits).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(fn.isomax_loss(logits, mixed), expected)


def test_outliers_contribute_nothing():
    logits, labels = -torch.rand(4, 3), torch.tensor([0, -1, 2, -5])
    with pytest.warns(UserWarning, match="Discarding samples with targets < 0"):
        loss = fn.isomax_loss(logits, labels)
    torch.testing.assert_close(loss, fn.isomax_loss(logits[[0, 2]], labels[[0, 2]]))
    with pytest.warns(UserWarning, match="Discarding"):
        each = fn.isomax_loss(logits, labels, reduction="none")
    assert each[1] == each[3] == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_of_only_outliers_has_loss_and_gradient_zero(reduction):
    logits = (-torch.rand(4, 3)).requires_grad_()
    with pytest.warns(UserWarning, match="Discarding"):
        loss = fn.isomax_loss(logits, torch.full((4,), -1), reduction=reduction).sum()
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_each_pixel_is_a_sample():
    torch.manual_seed(0)
    features, prototypes = torch.randn(2, 5, 3, 4), torch.randn(6, 5)
    distances = fn.isomax_distances(features, prototypes)
    assert distances.shape == (2, 6, 3, 4)
    pixels = features.permute(0, 2, 3, 1).reshape(-1, 5)
    as_rows = fn.isomax_distances(pixels, prototypes)
    torch.testing.assert_close(distances.permute(0, 2, 3, 1).reshape(-1, 6), as_rows)
    labels = torch.randint(6, (2, 3, 4))
    torch.testing.assert_close(
        fn.isomax_loss(-distances, labels), fn.isomax_loss(-as_rows, labels.flatten())
    )
    for score in (
        fn.entropic_score,
        fn.minimum_distance_score,
        fn.max_mean_logit_entropy_score,
    ):
        torch.testing.assert_close(score(-distances).flatten(), score(-as_rows))


# -- Scores ------------------------------------------------------------------------------------


def test_scores_against_their_formulas():
    logits = torch.tensor([[-1.0, -2.0, -4.0]], dtype=torch.float64)
    p = logits.softmax(dim=1)[0]
    entropy = -sum(float(q) * math.log(float(q)) for q in p)
    assert float(fn.entropic_score(logits)) == pytest.approx(entropy)
    assert float(fn.minimum_distance_score(logits)) == 1
    assert float(fn.max_mean_logit_entropy_score(logits)) == pytest.approx(1 + 7 / 3 + entropy)


def test_energy_is_pytorch_oods():
    logits = 30 * torch.randn(50, 7, dtype=torch.float64)
    theirs = EnergyBased(None).predict_logits(logits)
    torch.testing.assert_close(fn.SCORES["energy_score"](logits), theirs)


def test_entropy_where_probabilities_underflow():
    assert fn.entropic_score(torch.tensor([[0.0, -1e5, -torch.inf]])) == 0


@given(seeds, sizes, st.floats(0, 1e4))
def test_entropy_lies_between_zero_and_log_c(generator, size, spread):
    batch, _, classes = size
    logits = -spread * torch.rand(batch, classes, generator=generator)
    entropy = fn.entropic_score(logits)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(classes) * (1 + 1e-6)).all()


# -- Invariants --------------------------------------------------------------------------------


@given(seeds, sizes)
@settings(deadline=None)
def test_isotropy_rotating_features_and_prototypes_changes_nothing(generator, size):
    features, prototypes = draw(generator, size)
    turn, scale = rotation(size[1], generator), torch.tensor(1.3, dtype=torch.float64)
    for distances in (
        fn.isomax_distances,
        lambda f, p: fn.isomaxplus_distances(f, p, scale),
        lambda f, p: fn.dismax_distances(f, p, scale),
    ):
        torch.testing.assert_close(
            distances(features @ turn, prototypes @ turn),
            distances(features, prototypes),
            rtol=1e-6,
            atol=1e-6,
        )


@given(seeds, sizes)
def test_translating_features_and_prototypes_changes_nothing_in_isomax(generator, size):
    features, prototypes = draw(generator, size)
    shift = torch.randn(size[1], generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        fn.isomax_distances(features + shift, prototypes + shift),
        fn.isomax_distances(features, prototypes),
        rtol=1e-6,
        atol=1e-6,
    )


@given(seeds, sizes, st.floats(1e-3, 1e3))
def test_scaling_features_changes_nothing_in_isomaxplus_and_dismax(generator, size, factor):
    features, prototypes = draw(generator, size)
    scale = torch.tensor(0.7, dtype=torch.float64)
    for distances in (fn.isomaxplus_distances, fn.dismax_distances):
        torch.testing.assert_close(
            distances(factor * features, prototypes, scale),
            distances(features, prototypes, scale),
            rtol=1e-6,
            atol=1e-6,
        )


@given(seeds, sizes)
def test_permuting_classes_permutes_logits_and_keeps_scores(generator, size):
    features, prototypes = draw(generator, size)
    order = torch.randperm(size[2], generator=generator)
    logits = fn.dismax_logits(fn.isomax_distances(features, prototypes))
    permuted = fn.dismax_logits(fn.isomax_distances(features, prototypes[order]))
    torch.testing.assert_close(permuted, logits[:, order])
    for score in (
        fn.entropic_score,
        fn.minimum_distance_score,
        fn.max_mean_logit_entropy_score,
    ):
        torch.testing.assert_close(score(permuted), score(logits))


# -- Fractional probability regularisation -----------------------------------------------------


def test_mosaics_are_made_of_quadrants_whose_classes_the_target_names():
    torch.manual_seed(0)
    labels = torch.arange(8)
    # every pixel of an image holds its label, so an image shows what it is made of
    images = labels.float()[:, None, None, None].expand(8, 3, 6, 6).clone()
    mixed, target = fn.mosaic(images, labels, num_classes=8)
    assert (images[:, 0, 0, 0] == labels).all()  # the input is left alone
    torch.testing.assert_close(target.sum(dim=1), torch.ones(8))
    for image, probabilities in zip(mixed, target, strict=True):
        seen = torch.zeros(8)
        for quadrant in (image[0, :3, :3], image[0, :3, 3:], image[0, 3:, :3], image[0, 3:, 3:]):
            assert quadrant.min() == quadrant.max()
            seen[int(quadrant[0, 0])] += 0.25
        torch.testing.assert_close(seen, probabilities)
    assert (target[:4].max(dim=1).values == 1).all()
    assert (target[4:].max(dim=1).values == 0.25).all()  # four different images each


def test_classes_that_repeat_in_a_mosaic_add_up():
    _, target = fn.mosaic(torch.rand(8, 3, 4, 4), torch.zeros(8, dtype=torch.long), num_classes=2)
    torch.testing.assert_close(target, torch.tensor([[1.0, 0.0]]).expand(8, 2))


@pytest.mark.parametrize("size", [8, 7, 2])
def test_fractional_probability_loss_is_the_mean_of_the_papers_two_terms(size):
    torch.manual_seed(0)
    labels = torch.randint(5, (size,))
    _, target = fn.mosaic(torch.rand(size, 3, 4, 4), labels, num_classes=5)
    half = size // 2  # as the authors' code rounds it
    assert (target[:half].max(dim=1).values == 1).all()
    logits = -torch.rand(size, 5)
    plain = fn.isomax_loss(logits[:half], target[:half].argmax(dim=1))
    log_posteriors = (10 * logits[half:]).log_softmax(dim=1)
    divergence = torch.nn.functional.kl_div(log_posteriors, target[half:], reduction="batchmean")
    torch.testing.assert_close(
        fn.fractional_probability_loss(logits, target), (plain + divergence) / 2
    )


def test_a_batch_of_one_is_one_mosaic_and_of_labels_the_plain_loss():
    image, target = fn.mosaic(torch.rand(1, 3, 4, 4), torch.tensor([2]), num_classes=5)
    assert image.shape == (1, 3, 4, 4)
    logits = -torch.rand(3, 5)
    torch.testing.assert_close(
        fn.fractional_probability_loss(logits[:1], target),
        fn.isomax_loss(logits[:1], torch.tensor([2])),
    )
    labels = torch.tensor([4, 0, 1])
    for reduction in (*fn.REDUCTIONS, None):
        torch.testing.assert_close(
            fn.fractional_probability_loss(logits, labels, reduction=reduction),
            fn.isomax_loss(logits, labels, reduction=reduction),
        )


@given(seeds, st.integers(0, 9), st.integers(0, 4))
def test_mosaics_leave_outliers_alone_and_the_loss_discards_them(generator, known, outliers):
    labels = torch.cat([torch.arange(known) % 3, torch.full((outliers,), -1)])
    order = torch.randperm(len(labels), generator=generator)
    images = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 1, 2, 2)[order]
    mixed, target = fn.mosaic(images, labels[order], num_classes=3, generator=generator)
    assert mixed.shape == images.shape
    assert (target[known:] == -1).all()
    assert set(mixed[known:, 0, 0, 0].tolist()) == set(range(known, known + outliers))
    logits = -torch.rand(len(labels), 3, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = fn.fractional_probability_loss(logits, target)
        each = fn.fractional_probability_loss(logits, target, reduction="none")
    if known:
        expected = fn.fractional_probability_loss(logits[:known], target[:known])
        torch.testing.assert_close(loss, expected)
    assert (each[known:] == 0).all()


# -- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fn.isomax_distances(torch.rand(4), torch.rand(5, 4)), r"shape \(4,\)"),
        (lambda: fn.isomax_distances(torch.rand(2, 4, 3), torch.rand(5, 4)), "in_features=3"),
        (lambda: fn.isomax_distances(torch.rand(2, 3), torch.rand(5, 4)), "in_features=3"),
        (
            lambda: fn.isomax_distances(
                torch.tensor([[0.0], [torch.nan], [torch.nan]]), torch.rand(5, 1)
            ),
            "2 of 3 rows are NaN: 1, 2",
        ),
        (lambda: fn.isomax_loss(torch.rand(2, 3), torch.tensor([0, 3])), "label 3 with 3 classes"),
        (lambda: fn.isomax_loss(torch.rand(2, 3), torch.tensor([0])), r"expected \(2,\)"),
        (lambda: fn.isomax_loss(torch.rand(2, 3), torch.rand(2, 4)), r"\(2, 4\)"),
        (lambda: fn.isomax_loss(torch.rand(3), torch.tensor(0)), r"expected \[B, C\]"),
        (
            lambda: fn.isomax_loss(torch.rand(2, 3), torch.tensor([0, 1]), reduction="max"),
            "mean, sum, none",
        ),
        (
            lambda: fn.mosaic(torch.rand(2, 3, 4, 4), torch.tensor([2, -1]), num_classes=2),
            "label 2 with 2 classes",
        ),
        (
            lambda: fn.fractional_probability_loss(torch.rand(2, 3), torch.tensor([0, 3])),
            "label 3 with 3 classes",
        ),
        (
            lambda: fn.fractional_probability_loss(torch.rand(2, 3), torch.rand(2, 2)),
            r"\(2, 2\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nan_features_are_found_in_feature_maps_and_in_isomaxplus():
    features = torch.rand(1, 3, 2, 2)
    features[0, 1, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 4 rows are NaN: 2"):
        fn.isomax_distances(features, torch.rand(5, 3))
    with pytest.raises(ValueError, match="1 of 4 rows are NaN: 2"):
        fn.isomaxplus_distances(features, torch.rand(5, 3), torch.tensor(1.0))


def test_valid_labels_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fn.isomax_loss(-torch.rand(4, 3), torch.tensor([0, 1, 2, 0]))
