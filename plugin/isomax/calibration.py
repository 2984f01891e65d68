r"""What is set after training, on held-out in-distribution data only: a temperature for the
probabilities and a rejection threshold for the scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isomax.functional import SCORES

MOST_SAMPLES = 10_000  #: as many held-out ID samples calibrate at most
#: relative to the largest score: what its last bits say depends on batch size and library
ROUNDING = 4 * torch.finfo(torch.float32).eps
MAX_TEMPERATURE = 1e3  #: where :func:`fit_temperature` ends up if the logits say nothing
_ELEMENTS_AT_ONCE = 2**18  # of logits: a block and what is made of it stay in the processor's cache
_STEP = 1e-6  # of the logarithm of the temperature; the step after it is its square


def fit_temperature(
    logits: Tensor, labels: Tensor, bounds: tuple[float, float] = (1e-3, MAX_TEMPERATURE)
) -> float:
    r"""The temperature :math:`T` that makes :math:`\mathrm{softmax}(z / T)` best calibrated.

    .. math:: T = \arg\min_T \; -\frac{1}{N} \sum_i \log
        \mathrm{softmax}\Bigl(\frac{z_i}{T}\Bigr)_{y_i}

    The loss is convex in :math:`1 / T`: Newton's method on its derivative finds the minimum, and
    bisection takes over where a step of it leaves the interval in which the root is known to lie.
    Logits are read in blocks, so that memory does not grow with them. Dividing by :math:`T > 0`
    never changes the predicted class. As in Platt scaling, the labels are smoothed by
    :math:`1 / (N + 2)`: data that are all classified right would otherwise
    ask for certainty, :math:`T = 0`.

    An IsoMax network at inference is under-confident by design (the entropic scale is gone), so
    its temperature lies far below one, outside the range that
    ``pytorch_ood.utils.temperature_calibration`` searches. Use it for the probabilities; the
    OOD scores are taken at :math:`T = 1`, as undoing the entropy maximisation would weaken them.

    :param logits: logits of held-out ID data, :math:`N \times C`
    :param labels: their classes, :math:`N`
    :param bounds: the interval that is searched
    :return: :math:`T`, unitless
    :raises ValueError: if shapes do not fit, a label is not in :math:`[0, C)`, or logits are
        not finite

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; the smoothing: Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999.

    >>> logits = torch.tensor([[0.2, 0.0]]).expand(4000, 2)
    >>> labels = torch.tensor([0, 0, 0, 1]).repeat(1000)
    >>> round(fit_temperature(logits, labels), 3)  # three of four are right: 0.2 / log 3
    0.182
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)}; expected "
            "[N, C] and [N] with N at least 1"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels lie in [{int(labels.min())}, {int(labels.max())}]; expected "
            f"[0, {logits.shape[1]}): calibrate on in-distribution data only"
        )
    blocks = logits.detach().split(max(1, _ELEMENTS_AT_ONCE // logits.shape[1]))
    right = total = 0.0  # sums of the right logits, and of the means of all, each less the largest
    bad = 0
    for block, chosen in zip(blocks, labels.split(blocks[0].shape[0]), strict=True):
        bad += int((~block.isfinite()).any(dim=1).sum())
        below = _below_largest(block)
        right += _sum(below.gather(1, chosen[:, None]))
        total += _sum(below.mean(dim=1))
    if bad:
        raise ValueError(f"{bad} of {len(logits)} rows of logits are not finite; leave them out")
    smoothing = 1 / (len(logits) + 2)
    target = ((1 - smoothing) * right + smoothing * total) / len(logits)

    def derivatives(inverse_temperature: float) -> tuple[float, float]:
        """First and second, of the loss by the inverse temperature: with the posteriors' mean and
        variance of the logits."""
        first = second = 0.0
        for block in blocks:
            below = _below_largest(block)
            posteriors = (below * inverse_temperature).softmax(dim=1)
            mean = torch.linalg.vecdot(posteriors, below)
            first += _sum(mean)
            second += _sum(torch.linalg.vecdot(posteriors, below.square_()) - mean.square())
        return first / len(logits) - target, second / len(logits)

    low, high = math.log(1 / bounds[1]), math.log(1 / bounds[0])
    at = (low + high) / 2
    while high - low > 1e-9:
        first, second = derivatives(math.exp(at))
        if first > 0:
            high = at
        else:
            low = at
        slope = second * math.exp(at)  # by the logarithm of the inverse temperature
        step = -first / slope if slope > 0 else math.inf
        if abs(step) < _STEP:
            at = min(max(at + step, low), high)
            break
        at = at + step if low < at + step < high else (low + high) / 2
    return math.exp(-at)


def _below_largest(logits: Tensor) -> Tensor:
    """How far each logit lies below the largest of its row: float32 tells these apart where it may
    not the sums of large logits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits - logits.amax(dim=1, keepdim=True)


def _sum(values: Tensor) -> float:
    return float(values.cpu().double().sum())


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    r"""Mean gap between confidence and accuracy over bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{|B_b|}{N} \,
        \bigl| \mathrm{acc}(B_b) - \mathrm{conf}(B_b) \bigr|

    :param logits: :math:`N \times C`
    :param labels: :math:`N`
    :param bins: number of bins over :math:`[0, 1]`
    :return: ECE as a fraction in :math:`[0, 1]`

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    >>> expected_calibration_error(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))
    0.0
    """
    confidence, predicted = F.softmax(logits.double(), dim=1).max(dim=1)
    correct = (predicted == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct - confidence)
    return float(gaps.abs().sum() / len(labels))


class RejectionThreshold:
    r"""A score threshold with a guaranteed false-alarm rate, from in-distribution data alone.

    From the scores :math:`s_1, \dots, s_n` of held-out ID samples (not used in training), the
    threshold is the :math:`k`-th smallest with

    .. math:: k = n + 1 - \lfloor (n + 1) \alpha \rfloor

    and a sample is rejected when its score lies above it. A fresh ID sample, exchangeable with
    the held-out ones, is then rejected with probability at most :math:`\alpha`: the split
    conformal guarantee, which holds for every :math:`n`, score and network. It takes
    :math:`n \ge 1 / \alpha - 1` samples.

    With predicted classes given to both :meth:`fit` and :meth:`rejects`, every predicted class
    gets a threshold and a guarantee of its own (Mondrian conformal prediction).

    Source: Vovk et al., "Algorithmic Learning in a Random World", 2005; Angelopoulos and Bates,
    "A Gentle Introduction to Conformal Prediction", https://arxiv.org/abs/2107.07511.

    >>> threshold = RejectionThreshold(alpha=0.1).fit(torch.arange(1.0, 20.0))
    >>> threshold.value
    tensor(18.)
    >>> threshold.rejects(torch.tensor([17.5, 18.0, 18.5]))
    tensor([False, False,  True])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        r"""
        :param alpha: tolerated false-alarm rate :math:`\alpha`, a fraction in (0, 1)
        :raises ValueError: if alpha is not in (0, 1)
        """
        self.alpha = _checked_alpha(alpha)
        self.value: Tensor | None = None  #: a scalar, or one threshold per class

    @property
    def samples_needed(self) -> int:
        r"""The least number of held-out samples (per class) that :math:`\alpha` takes."""
        samples = max(1, math.floor(1 / self.alpha) - 1)
        while not _at_most(samples, self.alpha):
            samples += 1
        return samples

    def fit(self, scores: Tensor, predicted: Tensor | None = None) -> "RejectionThreshold":
        r"""Set the threshold.

        :param scores: outlier scores of held-out ID samples, :math:`N`; larger means more
            likely OOD
        :param predicted: predicted classes :math:`N`, for one threshold per class; every class
            from 0 to the largest must occur often enough
        :return: self
        :raises ValueError: if there are too few samples, or scores that are NaN
        """
        scores = _checked_scores(scores)
        if predicted is None:
            self.value = self._threshold(scores, "")
            return self
        if predicted.shape != scores.shape:
            raise ValueError(
                f"predicted has shape {tuple(predicted.shape)}, scores {tuple(scores.shape)}"
            )
        self.value = torch.stack(
            [
                self._threshold(scores[predicted == label], f" predicted as class {label}")
                for label in range(int(predicted.max()) + 1)
            ]
        )
        return self

    def rejects(self, scores: Tensor, predicted: Tensor | None = None) -> Tensor:
        r"""Which samples to reject as OOD.

        :param scores: outlier scores, any shape
        :param predicted: predicted classes of the same shape, if :meth:`fit` was given them
        :return: boolean, of the same shape; NaN scores are rejected
        :raises ValueError: if not fitted, or predicted classes are given to one of the two only
        """
        if self.value is None:
            raise ValueError("the threshold is not set; call fit(scores) first")
        if (predicted is None) != (self.value.dim() == 0):
            raise ValueError(
                "pass predicted classes to both fit() and rejects(), or to neither of them"
            )
        value = self.value if predicted is None else self.value.to(scores.device)[predicted]
        # not "scores > value", which accepts NaN
        return ~(scores <= value.to(scores.device))

    def _threshold(self, scores: Tensor, where: str) -> Tensor:
        rejected = _at_most(len(scores), self.alpha)
        if not rejected:
            raise ValueError(
                f"alpha={self.alpha} takes at least {self.samples_needed} held-out samples, got "
                f"{len(scores)}{where}; give more, or choose alpha of at least "
                f"{1 / (len(scores) + 1):.4g}"
            )
        return scores.sort().values[-rejected]


def attainable_p_values(samples: int) -> Tensor:
    r"""What conformal p-values can be, in float32: the largest not above :math:`k / (n + 1)`.

    So that :math:`p \le \alpha` holds in any precision where :math:`k / (n + 1) \le \alpha` does;
    the float32 next to 1/20 lies above 0.05.

    :param samples: :math:`n`, the number of calibration scores
    :return: for :math:`k = 1, \dots, n + 1`, :math:`n + 1` values, ascending

    >>> float(attainable_p_values(19)[0]) <= 0.05 < float(torch.tensor(0.05))
    True
    """
    ranks = torch.arange(1, samples + 2, dtype=torch.float64)
    nearest = (ranks / (samples + 1)).float()
    above = nearest.double() * (samples + 1) > ranks  # exact: 24 bits and those of n in 53
    return torch.where(above, nearest.nextafter(torch.zeros(())), nearest)


def p_values(scores: Tensor, calibration: Tensor, tolerance: float = 0.0) -> Tensor:
    r"""How unusual scores are among those of held-out ID samples.

    .. math:: p = \frac{1 + \#\{i : s_i + \tau \ge s\}}{n + 1}

    A fresh ID sample, exchangeable with the held-out ones, has :math:`p \le \alpha` with
    probability at most :math:`\alpha`, for every :math:`\alpha`: where :math:`p \le \alpha`,
    :class:`RejectionThreshold` rejects, if :math:`\tau = 0`. With a tolerance this holds too where
    the fresh sample was scored by other software, which gives scores up to :math:`\tau` larger.

    :param scores: outlier scores, any shape; NaN has the smallest p-value
    :param calibration: scores of held-out ID samples, :math:`n`
    :param tolerance: :math:`\tau`, in units of the scores: smaller differences are ties;
        :math:`s_i + \tau` is rounded to the type of the scores
    :return: float32 of the shape of ``scores``, as :func:`attainable_p_values` has them
    :raises ValueError: if there are no calibration scores, or some are NaN

    Source: Vovk et al., "Algorithmic Learning in a Random World", 2005; Bates et al., "Testing for
    outliers with conformal p-values", Annals of Statistics 2023.

    >>> p_values(torch.tensor([0.5, 2.5, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor([1.0000, 0.5000, 0.2500])
    """
    ordered = _checked_scores(calibration).cpu().double().sort().values + tolerance
    at_least = len(ordered) - torch.searchsorted(ordered.to(scores), scores.contiguous())
    return attainable_p_values(len(ordered)).to(scores.device)[at_least]


@dataclass(frozen=True)
class Calibration:
    """Everything a deployed model needs to turn logits into probabilities and verdicts.

    A sample is rejected where its p-value is at most :attr:`alpha`, and nowhere else.
    """

    #: the outlier score, a name in :data:`isomax.functional.SCORES`, or that of a detector
    score: str
    temperature: float  #: divides the logits for the probabilities; the score is taken without
    alpha: float  #: tolerated false-alarm rate
    scores: list[float]  #: of the held-out ID samples, float32, ascending: the p-values' origin
    tolerance: float = 0.0  #: of :func:`p_values`: scores so little apart are ties
    #: ``established`` if the held-out samples are exchangeable with fresh ones; ``not established``
    #: if they are known not to be; ``unknown`` if nobody can know
    guarantee: str = "established"
    #: of the held-out samples, in one order, float32: ``scores``, ``logits`` and, if these are
    #: scored, ``features``: software that computes scores in another way calibrates on its own
    outputs: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def samples(self) -> int:
        """Number of held-out ID samples behind it."""
        return len(self.scores)

    @property
    def threshold(self) -> float:
        """The score above which p-values are at most :attr:`alpha`."""
        largest = self.scores[-_at_most(self.samples, self.alpha)]
        return float(torch.tensor(largest + self.tolerance, dtype=torch.float32))

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        labels: Tensor,
        score: str = "entropic_score",
        alpha: float = 0.05,
        scores: Tensor | None = None,
        features: Tensor | None = None,
    ) -> "Calibration":
        r"""Fit temperature and threshold on held-out ID data.

        Of more than ``MOST_SAMPLES`` samples, as many are drawn, always the same, and the others
        are not looked at: what is kept of them goes into every file.

        :param logits: :math:`N \times C`, without the entropic scale
        :param labels: :math:`N`
        :param score: a name in :data:`isomax.functional.SCORES`, or that of a detector
        :param alpha: tolerated false-alarm rate
        :param scores: of the detector, :math:`N`
        :param features: :math:`N \times D`, if the detector scores these
        :raises ValueError: as :func:`fit_temperature` and :class:`RejectionThreshold`
        """
        if len(logits) > MOST_SAMPLES:
            order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
            drawn = order[:MOST_SAMPLES].to(logits.device)
            logits, labels = logits[drawn], labels[drawn.to(labels.device)]
            scores, features = (
                None if given is None else given[drawn.to(given.device)]
                for given in (scores, features)
            )
        scores = SCORES[score](logits) if scores is None else scores
        RejectionThreshold(alpha).fit(scores)  # there are enough of them
        outputs = {"scores": scores, "logits": logits}
        outputs |= {} if features is None else {"features": features}
        return cls(
            score,
            fit_temperature(logits, labels),
            alpha,
            scores=[],
            outputs={name: given.detach().float().cpu() for name, given in outputs.items()},
        ).with_scores(scores)

    def with_scores(self, scores: Tensor, tolerance: float = 0.0) -> "Calibration":
        """The same with other scores of the held-out samples, as other software computes them.

        :param tolerance: by how much these may differ; at least ``ROUNDING`` of the largest is
            allowed for
        """
        ascending = _checked_scores(scores).float().sort().values
        least = ROUNDING * float(ascending.abs().max())
        return replace(self, scores=ascending.tolist(), tolerance=max(tolerance, least))

    def score_of(self, logits: Tensor) -> Tensor:
        """The outlier scores of logits.

        :raises ValueError: if they are not of the logits alone
        """
        if self.score not in SCORES:
            raise ValueError(f"scores of {self.score} are the detector's, and not of logits alone")
        return SCORES[self.score](logits)

    def p_values(self, scores: Tensor) -> Tensor:
        """The conformal p-values of scores, in float32, see :func:`p_values`."""
        return p_values(scores.float(), torch.tensor(self.scores), self.tolerance)

    def rejects(self, scores: Tensor) -> Tensor:
        """Which samples are rejected as OOD: those whose p-value is at most :attr:`alpha`."""
        return self.p_values(scores).cpu().double() <= self.alpha

    def p_value_of(self, logits: Tensor) -> Tensor:
        """The conformal p-values of logits; where these are not finite, the smallest."""
        finite = logits.isfinite().all(dim=1)
        return self.p_values(self.score_of(logits).where(finite, torch.nan))

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the outputs."""
        names = ("score", "temperature", "alpha", "threshold", "scores", "samples", "tolerance")
        return {name: getattr(self, name) for name in (*names, "guarantee")}

    @classmethod
    def from_dict(
        cls, content: dict[str, Any], outputs: Mapping[str, Tensor] | None = None
    ) -> "Calibration":
        """From JSON.

        :param outputs: what is kept beside it
        :raises ValueError: if a value cannot be what it should be
        """
        if not isinstance(content["score"], str):
            raise ValueError(f"unknown score {content['score']!r}")
        scores = torch.tensor(content["scores"], dtype=torch.float32)
        tolerance = float(content["tolerance"])
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; expected a number of at least 0")
        for name, given in (outputs or {}).items():
            if len(given) != len(scores):
                raise ValueError(f"{len(given)} {name} for {len(scores)} scores")
        alpha = _checked_alpha(content["alpha"])
        RejectionThreshold(alpha).fit(scores)
        return cls(
            score=content["score"],
            temperature=float(content["temperature"]),
            alpha=alpha,
            scores=scores.sort().values.tolist(),
            tolerance=tolerance,
            guarantee=str(content["guarantee"]),
            outputs=outputs or {},
        )


def _at_most(samples: int, alpha: float) -> int:
    """How many of the p-values that there can be are at most alpha."""
    return int((attainable_p_values(samples).double() <= alpha).sum())


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha < 1:
        hint = f"; for {alpha:g}% pass {alpha / 100:g}" if 1 <= alpha < 100 else ""
        raise ValueError(f"alpha is {alpha}; expected a fraction in (0, 1){hint}")
    return float(alpha)


def _checked_scores(scores: Tensor) -> Tensor:
    scores = scores.detach().flatten()
    if not len(scores):
        raise ValueError("there are no scores; pass those of held-out in-distribution samples")
    if bad := int(scores.isnan().sum()):
        raise ValueError(f"{bad} of {len(scores)} scores are NaN; find out why before you go on")
    return scores
