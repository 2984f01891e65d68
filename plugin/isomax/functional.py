r"""The mathematics of IsoMax, IsoMax+ and DisMax as pure functions.

Notation: features :math:`f` of shape :math:`B \times D`, prototypes :math:`p_k` of shape
:math:`C \times D`, distances :math:`d_k` and logits of shape :math:`B \times C`, entropic scale
:math:`E_s`. Every function that takes features of shape :math:`B \times D` also takes feature maps
:math:`B \times D \times H \times W`, and every function that takes logits :math:`B \times C` also
takes :math:`B \times C \times H \times W`: each pixel is then a sample of its own. Distances are
also taken of tokens :math:`B \times N \times D`, as a linear layer takes them. They are leaves of a
symbolic trace (``torch.fx``), and can be scripted and traced to TorchScript.

Sources:

- IsoMax: Macêdo et al., "Entropic Out-of-Distribution Detection: Seamless Detection of Unknown
  Examples", IEEE TNNLS 2022, https://arxiv.org/abs/2006.04005
- IsoMax+: Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss",
  https://arxiv.org/abs/2105.14399
- DisMax: Macêdo et al., "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874
"""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ENTROPIC_SCALE = 10.0
"""The entropic scale of all three papers: a constant, never tuned."""


class NaNFeaturesError(ValueError):
    """Some rows of the features are NaN; says which."""


REDUCTIONS = ("mean", "sum", "none")


# -- Distances ---------------------------------------------------------------------------------


@torch.fx.wrap
def isomax_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    r"""Euclidean (not squared) distances of the features to the prototypes.

    .. math:: d_k = \lVert f - p_k \rVert_2

    Computed as :math:`\sqrt{\lVert f \rVert^2 + \lVert p_k \rVert^2 - 2 f \cdot p_k}`, one matrix
    product like a linear layer, with a closed-form gradient that needs two more, again like a
    linear layer. The gradient at distance zero is zero.

    *Accuracy.* The expansion cancels where a feature nearly coincides with a prototype. With
    :math:`\epsilon` the machine epsilon (1.2e-7 in float32), the absolute error of
    :math:`d_k^2` stays below :math:`8 \epsilon (\lVert f \rVert + \lVert p_k \rVert)^2`. So
    :math:`d_k` is right to a relative 1e-5 wherever it is at least a quarter of
    :math:`\lVert f \rVert + \lVert p_k \rVert`, and to an absolute
    :math:`10^{-3} (\lVert f \rVert + \lVert p_k \rVert)` everywhere. Half precision is computed
    in float32, under autocast too.

    :param features: :math:`B \times D`, :math:`B \times N \times D` or
        :math:`B \times D \times H \times W`
    :param prototypes: :math:`C \times D`
    :return: distances :math:`B \times C`, :math:`B \times N \times C` or
        :math:`B \times C \times H \times W`, in the unit of the features; at least float32
    :raises ValueError: if rank or width of the features do not fit, or some are NaN (checked on
        the CPU only, where looking at values costs no synchronisation)

    Source: IsoMax, the isotropic (exclusively distance-based) logits.

    >>> isomax_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    tensor([[5., 4.]])
    """
    rows, prototypes = _as_rows(features, prototypes)
    return _as_map(_euclidean(rows, prototypes), features)


@torch.fx.wrap
def isomaxplus_distances(features: Tensor, prototypes: Tensor, distance_scale: Tensor) -> Tensor:
    r"""Scaled distances between the directions of features and prototypes.

    .. math:: d_k = |s| \, \Bigl\lVert \frac{f}{\lVert f \rVert} - \frac{p_k}{\lVert p_k \rVert}
        \Bigr\rVert_2

    The direction of an all-zero vector is the zero vector, with zero gradient. Accuracy as in
    :func:`isomax_distances`, with both norms one.

    :param features: :math:`B \times D`, :math:`B \times N \times D` or
        :math:`B \times D \times H \times W`
    :param prototypes: :math:`C \times D`
    :param distance_scale: the learned scalar :math:`s`, of shape ``[1]`` or ``[]``
    :return: distances :math:`B \times C` (:math:`B \times N \times C`,
        :math:`B \times C \times H \times W`), in :math:`[0, 2 |s|]`
    :raises ValueError: as :func:`isomax_distances`

    Source: IsoMax+, the isometric distance.

    >>> isomaxplus_distances(
    ...     torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [-1.0, 0.0]]), torch.tensor(1.0)
    ... )
    tensor([[0., 2.]])
    """
    rows, prototypes = _as_rows(features, prototypes)
    distances = _euclidean(_direction(rows), _direction(prototypes))
    return _as_map(distance_scale.to(distances.dtype).abs() * distances, features)


@torch.fx.wrap
def dismax_distances(features: Tensor, prototypes: Tensor, distance_scale: Tensor) -> Tensor:
    r"""The distances of IsoMax+ divided by :math:`\sqrt 2`.

    .. math:: d_k = \frac{|s|}{\sqrt 2} \, \Bigl\lVert \frac{f}{\lVert f \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    Parameters, shapes and errors as in :func:`isomaxplus_distances`; the values lie in
    :math:`[0, \sqrt 2 |s|]`.

    Source: DisMax, distances before the enhanced logits.

    >>> dismax_distances(
    ...     torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.tensor(-1.0)
    ... )
    tensor([[1., 0.]])
    """
    return isomaxplus_distances(features, prototypes, distance_scale) / math.sqrt(2)


@torch.fx.wrap
def dismax_logits(distances: Tensor) -> Tensor:
    r"""Logits of DisMax ("enhanced logits") from its distances.

    .. math:: z_k = -\Bigl(d_k + \frac{1}{C} \sum_{j=1}^C d_j\Bigr)

    The logits of IsoMax and IsoMax+ are simply :math:`z_k = -d_k`.

    :param distances: :math:`B \times C`, :math:`B \times N \times C` or
        :math:`B \times C \times H \times W`
    :return: logits of the same shape

    Source: DisMax, enhanced logits (all-distances-aware logits).

    >>> dismax_logits(torch.tensor([[1.0, 3.0]]))
    tensor([[-3., -5.]])
    """
    classes = 2 if distances.dim() == 3 else 1
    return -(distances + distances.mean(dim=classes, keepdim=True))


# -- Loss --------------------------------------------------------------------------------------


def isomax_loss(
    logits: Tensor,
    target: Tensor,
    entropic_scale: float = ENTROPIC_SCALE,
    reduction: str | None = "mean",
) -> Tensor:
    r"""The loss of IsoMax, IsoMax+ and DisMax: cross-entropy of the logits times
    :math:`E_s`.

    .. math:: \mathcal{L}(z, y) = -\log \frac{e^{E_s z_y}}{\sum_k e^{E_s z_k}}

    The log-softmax is computed in one step: the softmax-then-log form of the reference code
    overflows (logits (0, -50, -60) and :math:`E_s = 10` give it an infinite loss).

    Outliers contribute nothing: ``mean`` averages over the other samples, ``none`` gives them zero,
    and a batch of only outliers has loss zero. A sample is an outlier if its label is below 0, or
    one of its class probabilities.

    :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`, without the scale
    :param target: labels :math:`B` (:math:`B \times H \times W`), or class probabilities of the
        shape of the logits (mixup, label smoothing)
    :param entropic_scale: :math:`E_s`; there in training, taken away at inference
    :param reduction: ``mean``, ``sum`` or ``none``
    :return: a scalar, or with ``none`` one value per sample
    :raises ValueError: if shapes do not fit, a label is not below C, the reduction is unknown, or
        logits are positive, see :func:`of_distances`

    Source: IsoMax, the loss with the entropic scale; the same in IsoMax+ and DisMax.

    >>> isomax_loss(torch.tensor([[0.0, -50.0, -60.0]]), torch.tensor([1]))
    tensor(500.)
    """
    reduction = checked_reduction(reduction)
    _check_target(logits, target)
    logits = of_distances(logits)
    losses, known, _ = _cross_entropies(entropic_scale * logits, target)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else _mean_of(losses, known)


def fractional_probability_loss(
    logits: Tensor,
    target: Tensor,
    entropic_scale: float = ENTROPIC_SCALE,
    reduction: str | None = "mean",
) -> Tensor:
    r"""DisMax's loss on a batch made by :func:`mosaic`.

    .. math:: \ell_i = \mathrm{KL}\bigl(t_i \,\Vert\, \mathrm{softmax}(E_s z_i)\bigr), \quad
        \mathcal{L} = \frac{1}{2} \Bigl( \frac{1}{|P|} \sum_{i \in P} \ell_i +
        \frac{1}{|M|} \sum_{i \in M} \ell_i \Bigr)

    with :math:`P` the plain images, which are the first :math:`\lfloor B / 2 \rfloor`, and
    :math:`M` the mosaics. On a plain image the target :math:`t_i` is one-hot and the term is
    :func:`isomax_loss`. (A batch of one image is one mosaic, and its term the loss.)

    Labels are one-hot targets of a batch without mosaics: the loss is then :func:`isomax_loss`.
    Outliers contribute nothing, as there; :math:`B` does not count them.

    :param logits: :math:`B \times C`, without the scale
    :param target: class probabilities :math:`B \times C`, from :func:`mosaic`; or labels :math:`B`
    :param entropic_scale: :math:`E_s`
    :param reduction: ``mean``, the formula; ``sum`` or ``none`` of the :math:`\ell_i`
    :return: a scalar, or with ``none`` one value per sample; zero where the scaled posteriors equal
        the targets
    :raises ValueError: as :func:`isomax_loss`

    Source: DisMax, fractional probability regularisation (FPR); the halves are those of the
    authors' code.

    >>> logits = torch.tensor([[0.25, 0.75]]).log() / 10
    >>> fractional_probability_loss(logits, torch.tensor([[0.25, 0.75]])).abs() < 1e-6
    tensor(True)
    """
    reduction = checked_reduction(reduction)
    if not target.is_floating_point():
        return isomax_loss(logits, target, entropic_scale, reduction)
    _check_target(logits, target)
    logits = of_distances(logits)
    cross_entropies, known, target = _cross_entropies(entropic_scale * logits, target)
    losses = cross_entropies + torch.xlogy(target, target).sum(dim=1)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    plain = known & (known.cumsum(dim=0) <= known.sum() // 2)
    halves = _mean_of(losses, plain) + _mean_of(losses, known & ~plain)
    return halves / (1 + plain.any())


def mosaic(
    images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Shuffle a batch and turn its second half into mosaics, the batch transform of DisMax.

    A mosaic takes each of its quadrants from another image of the second half; its target gives
    0.25 to the class of each quadrant (summed where classes repeat). Feed the result to
    :func:`fractional_probability_loss`.

    Outliers (labels < 0) go last, as they are, and their targets are -1 for every class: that loss
    discards them.

    :param images: :math:`B \times 3 \times H \times W`
    :param labels: :math:`B`
    :param num_classes: :math:`C`
    :param generator: source of randomness, on the CPU
    :return: images of the same shape, and class probabilities :math:`B \times C`; the first
        :math:`\lfloor B / 2 \rfloor` (:math:`B` without outliers) are plain images with one-hot
        targets
    :raises ValueError: if a label is not below C

    Source: DisMax, fractional probability regularisation (FPR).

    >>> images, target = mosaic(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 2]), num_classes=3)
    >>> images.shape, target.sum(dim=1)
    (torch.Size([4, 3, 8, 8]), tensor([1., 1., 1., 1.]))
    """
    if (labels >= num_classes).any():
        raise ValueError(
            f"label {int(labels.max())} with {num_classes} classes; labels go from 0 to "
            f"{num_classes - 1}, outliers are < 0"
        )
    shuffled = torch.randperm(len(images), generator=generator).to(labels.device)
    outliers = labels[shuffled] < 0
    shuffled = torch.cat([shuffled[~outliers], shuffled[outliers]])
    known = len(images) - int(outliers.sum())
    plain = known // 2
    images = images[shuffled.to(images.device)]
    target = F.one_hot(labels[shuffled].clamp(min=0), num_classes).float()
    sources, source_target = images[plain:known].clone(), target[plain:known].clone()
    target[plain:known] = 0
    target[known:] = -1
    height, width = images.shape[-2] // 2, images.shape[-1] // 2
    quadrants = [
        (rows, columns)
        for rows in (slice(None, height), slice(height, None))
        for columns in (slice(None, width), slice(width, None))
    ]
    # the batch is shuffled already, so shifting it pairs four different images at random
    for shift, (rows, columns) in enumerate(quadrants):
        images[plain:known, :, rows, columns] = sources.roll(shift, dims=0)[:, :, rows, columns]
        target[plain:known] += source_target.roll(shift, dims=0) / 4
    return images, target


# -- Scores: larger means more likely OOD ------------------------------------------------------


def entropic_score(logits: Tensor) -> Tensor:
    r"""Entropy of the posteriors at inference, the score of IsoMax.

    .. math:: \mathrm{ES} = -\sum_k \pi_k \log \pi_k, \quad \pi = \mathrm{softmax}(z)

    (The paper's score is the negative of it; here larger means more likely OOD.)

    :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`, without the
        entropic scale
    :return: entropies in nats, :math:`B` (:math:`B \times H \times W`), in :math:`[0, \log C]`

    Source: IsoMax, entropic score.

    >>> entropic_score(torch.tensor([[-1.0, -1.0], [0.0, -1000.0]]))
    tensor([0.6931, 0.0000])
    """
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    # 0 * log 0 = 0 also where the logarithm is -inf; torch 2.9 exports no torch.special.entr
    information = (-log_probabilities).masked_fill(probabilities == 0, 0.0)
    return (probabilities * information).sum(dim=1)


def minimum_distance_score(logits: Tensor) -> Tensor:
    r"""Distance to the nearest prototype, the score of IsoMax+.

    .. math:: \mathrm{MDS} = \min_k d_k = -\max_k z_k

    :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
    :return: distances, :math:`B` (:math:`B \times H \times W`)
    :raises ValueError: if logits are positive, see :func:`of_distances`

    Source: IsoMax+, minimum distance score.

    >>> minimum_distance_score(torch.tensor([[-3.0, -1.0]]))
    tensor([1.])
    """
    return -of_distances(logits).amax(dim=1)


def max_mean_logit_entropy_score(logits: Tensor) -> Tensor:
    r"""Maximum and mean logit combined with the entropy, the score of DisMax.

    .. math:: \mathrm{MMLES} = -\Bigl(\max_k z_k + \frac{1}{C} \sum_k z_k\Bigr) + \mathrm{ES}(z)

    :param logits: :math:`B \times C`, or :math:`B \times C \times H \times W`
    :return: scores, :math:`B` (:math:`B \times H \times W`)
    :raises ValueError: if logits are positive, see :func:`of_distances`

    Source: DisMax, max-mean logit entropy score.

    >>> max_mean_logit_entropy_score(torch.tensor([[-2.0, -2.0]]))
    tensor([4.6931])
    """
    logits = of_distances(logits)
    return entropic_score(logits) - logits.amax(dim=1) - logits.mean(dim=1)


def energy_score(logits: Tensor) -> Tensor:
    r"""Free energy of the logits of a softmax classifier.

    .. math:: E = -\log \sum_k e^{z_k}

    :param logits: :math:`B \times C`
    :return: :math:`B`, larger for samples that are more likely OOD

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020,
    https://arxiv.org/abs/2010.03759, equation 4 at temperature 1.

    >>> energy_score(torch.zeros(1, 4)) == -torch.tensor(4.0).log()
    tensor([True])
    """
    return -logits.logsumexp(dim=1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    score.__name__: score
    for score in (
        entropic_score,
        minimum_distance_score,
        max_mean_logit_entropy_score,
        energy_score,
    )
}
"""The scores by name."""


# -- Details -----------------------------------------------------------------------------------


def _euclidean(features: Tensor, prototypes: Tensor) -> Tensor:
    if torch.jit.is_scripting():
        return _torchscript_euclidean(features, prototypes)
    else:  # not compiled by TorchScript, for being an else
        return _eager_euclidean(features, prototypes)


def _eager_euclidean(features: Tensor, prototypes: Tensor) -> Tensor:
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        return _torchscript_euclidean(features, prototypes)
    with _without_autocast(features):
        trained = torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad)
        # which torch 2.9 cannot export, and which its Dynamo takes for exported
        exported = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
        if trained and not exported:
            return _EuclideanDistance.apply(features, prototypes)
        return _EuclideanDistance.forward(features, prototypes)


def _torchscript_euclidean(features: Tensor, prototypes: Tensor) -> Tensor:
    # no Python autograd function can go there: the same expansion and the same gradient
    return torch.cdist(features, prototypes, compute_mode="use_mm_for_euclid_dist")


class _EuclideanDistance(torch.autograd.Function):
    r"""Distances of rows with their closed-form gradient.

    With :math:`G = \partial L / \partial d` and :math:`W = G / d` (zero where :math:`d = 0`):
    :math:`\partial f = \mathrm{rowsum}(W) f - W p`,
    :math:`\partial p = \mathrm{colsum}(W) p - W^\top f`. Autograd's own gradient of the expansion
    costs twice the time and three copies of the prototypes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, prototypes: Tensor) -> Tensor:
        feature_norms = torch.linalg.vector_norm(features, dim=1, keepdim=True).square()
        if _values_are_free_to_read(feature_norms) and bool(feature_norms.isnan().any()):
            _refuse_nan_rows(feature_norms)
        squared = torch.addmm(feature_norms, features, prototypes.T, alpha=-2)
        # vector_norm makes no copy of the prototypes; after the product they are in the cache
        prototype_norms = torch.linalg.vector_norm(prototypes, dim=1).square()
        return squared.add_(prototype_norms).relu_().sqrt_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, prototypes, distances = ctx.saved_tensors
        grad_features = grad_prototypes = None
        with _without_autocast(grad):
            weights = grad / distances.masked_fill(distances == 0, torch.inf)
            if ctx.needs_input_grad[0]:
                grad_features = weights.sum(1, keepdim=True) * features
                grad_features = torch.addmm(grad_features, weights, prototypes, alpha=-1)
            if ctx.needs_input_grad[1]:
                grad_prototypes = weights.sum(0).unsqueeze(1) * prototypes
                if _is_vmapped(grad_prototypes):  # which has no rule for the sum in place
                    return grad_features, grad_prototypes - weights.T @ features
                # in place: a second tensor of the prototypes' size would cost more than the sum
                grad_prototypes.addmm_(weights.T, features, alpha=-1)
        return grad_features, grad_prototypes


def _direction(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # dividing by inf gives an all-zero vector the direction zero, and zero gradient
    return vectors / norms.masked_fill(norms == 0, torch.inf)


def _as_rows(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Features and prototypes as rows of one dtype, at least float32."""
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        _check_features(features, prototypes)
    if features.dim() == 4:
        features = features.permute(0, 2, 3, 1).flatten(0, 2)
    elif features.dim() == 3:
        features = features.flatten(0, 1)
    dtype = torch.promote_types(
        torch.promote_types(features.dtype, prototypes.dtype), torch.float32
    )
    return features.to(dtype), prototypes.to(dtype)


def _check_features(features: Tensor, prototypes: Tensor) -> None:
    if features.dim() not in (2, 3, 4):
        raise ValueError(
            f"features have shape {tuple(features.shape)}; expected [B, D], [B, N, D] for tokens, "
            "or [B, D, H, W] for dense prediction (pool or flatten them before the head)"
        )
    width = features.shape[2 if features.dim() == 3 else 1]
    if width != prototypes.shape[1]:
        raise ValueError(
            f"features have width {width} (shape {tuple(features.shape)}), the prototypes "
            f"{prototypes.shape[1]}; build the head with in_features={width}"
        )


def _refuse_nan_rows(norms: Tensor) -> None:
    rows = norms.flatten().isnan().nonzero().flatten().tolist()
    listed = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    raise NaNFeaturesError(
        f"features of {len(rows)} of {len(norms)} rows are NaN: {listed}; look for a learning "
        "rate that is too high, or for NaN in the inputs of these rows"
    )


def _as_map(rows: Tensor, features: Tensor) -> Tensor:
    """Back from one row per token or pixel to the layout of the features."""
    if features.dim() == 3:
        batch, tokens, _ = features.shape
        return rows.unflatten(0, (batch, tokens))
    if features.dim() == 4:
        batch, _, height, width = features.shape
        return rows.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)
    return rows


@torch.fx.wrap
def of_distances(logits: Tensor) -> Tensor:
    """Logits that can be those of a distance head: none is positive, since no distance is negative.

    :param logits: of any shape
    :return: the same
    :raises ValueError: if some are positive (looked at on the CPU only, where that costs no
        synchronisation, and not while a compiler or an exporter runs)
    """
    if not torch.jit.is_scripting():
        _refuse_positive(logits)
    return logits


@torch.jit.ignore
def _refuse_positive(logits: Tensor) -> None:
    if _values_are_free_to_read(logits) and bool((logits > 0).any()):
        largest = float(logits.detach().max())
        raise ValueError(
            f"logits reach {largest:.3g}, and those of a distance head are never "
            "positive: they are a linear classifier's; put IsoMaxHead, IsoMaxPlusHead or "
            "DisMaxHead in its place (isomax_adapters.timm.attach), or take the loss and the "
            "scores of softmax classifiers"
        )


def checked_reduction(reduction: str | None) -> str:
    """The name of a reduction; ``None`` is ``none``, as in pytorch-ood.

    :raises ValueError: if it is unknown
    """
    reduction = reduction or "none"
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    return reduction


def _cross_entropies(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One value per sample, zero for outliers; which are none; the target without them."""
    if target.is_floating_point():
        known = (target >= 0).all(dim=1)
        target = target.masked_fill(~known.unsqueeze(1), 0)
        return F.cross_entropy(logits, target, reduction="none"), known, target
    known = target >= 0
    target = target.masked_fill(~known, -1)
    return F.cross_entropy(logits, target, reduction="none", ignore_index=-1), known, target


def _mean_of(losses: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen samples; zero if there are none."""
    return losses.where(chosen, 0).sum() / chosen.sum().clamp(min=1)


def _check_target(logits: Tensor, target: Tensor) -> None:
    if logits.dim() not in (2, 4):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; expected [B, C] or [B, C, H, W]"
        )
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                f"class probabilities have shape {tuple(target.shape)}, logits "
                f"{tuple(logits.shape)}; they must be equal (for labels pass integers)"
            )
        _warn_of_outliers(target)
        return
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(f"labels have shape {tuple(target.shape)}; expected {expected}")
    if not _values_are_free_to_read(target) or target.numel() == 0:
        return
    if (largest := int(target.max())) >= logits.shape[1]:
        raise ValueError(
            f"label {largest} with {logits.shape[1]} classes; labels go from 0 to "
            f"{logits.shape[1] - 1}, outliers are < 0"
        )
    _warn_of_outliers(target)


def _warn_of_outliers(target: Tensor) -> None:
    if _values_are_free_to_read(target) and bool((target < 0).any()):
        warnings.warn(
            "Discarding samples with targets < 0 (OOD), which this loss does not use.",
            stacklevel=5,
        )


def _values_are_free_to_read(tensor: Tensor) -> bool:
    # a look at the values stalls an accelerator, and breaks the graph of a compiler
    return (
        not torch.compiler.is_compiling()
        and tensor.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not _is_vmapped(tensor)
    )


def _is_vmapped(tensor: Tensor) -> bool:
    return not torch.compiler.is_compiling() and bool(
        torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _without_autocast(tensor: Tensor) -> Any:
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
