"""Bootstrap intervals of detection metrics."""

from collections.abc import Sequence

import numpy as np

from isomax_evaluation.detection.testing.metrics import METRICS

REPEATS = 200
BINS = 2000  # thresholds looked at; more change nothing that an interval of 200 repeats shows


def draw(count: int, generator: np.random.Generator, repeats: int = REPEATS) -> np.ndarray:
    """How often each of ``count`` images is drawn, with replacement, :math:`R \\times N`."""
    rows = np.arange(repeats)[:, None] * count
    drawn = rows + generator.integers(0, count, (repeats, count))
    return np.bincount(drawn.ravel(), minlength=repeats * count).reshape(repeats, count)


def bootstrap(
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    id_drawn: np.ndarray,
    ood_drawn: np.ndarray,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of metrics averaged over seeds, under resampling of the test images.

    All seeds see the same draw, since they are tested on the same images.

    :param scores: ID and OOD scores of each seed, larger means more likely OOD
    :param id_drawn: from :func:`draw`, :math:`R \\times N`
    :param ood_drawn: likewise for the OOD images
    :return: lower and upper bound by metric, in [0, 1]
    """
    repeated = [resampled_metrics(known, unknown, id_drawn, ood_drawn) for known, unknown in scores]
    tail = 100 * (1 - level) / 2
    bounds = {}
    for name in METRICS:
        mean = np.mean([metrics[name] for metrics in repeated], axis=0)
        low, high = np.percentile(mean, [tail, 100 - tail])
        bounds[name] = (float(low), float(high))
    return bounds


def resampled_metrics(
    known: np.ndarray, unknown: np.ndarray, id_drawn: np.ndarray, ood_drawn: np.ndarray
) -> dict[str, np.ndarray]:
    """pytorch-ood's metrics of each draw, :math:`R` each; with at most :data:`BINS` thresholds.

    :param known: ID scores, :math:`N`
    :param unknown: OOD scores, :math:`M`
    """
    edges = np.unique(np.concatenate([known, unknown]))
    if len(edges) > BINS:
        edges = edges[np.linspace(0, len(edges) - 1, BINS).astype(int)]
    # a bin per threshold, from the most OOD score down
    counts = [
        _binned(scores, drawn, edges)[:, ::-1]
        for scores, drawn in ((unknown, ood_drawn), (known, id_drawn))
    ]
    true, false = (np.cumsum(part, axis=1, dtype=float) for part in counts)
    tpr, fpr = (np.pad(part / part[:, -1:], ((0, 0), (1, 0))) for part in (true, false))
    reached = (tpr >= 0.95).argmax(axis=1)
    # ID as the positive class: the same counts from the other end
    true_id, false_id = (np.cumsum(part[:, ::-1], axis=1, dtype=float) for part in counts[::-1])
    return {
        "AUROC": _area(fpr, tpr),
        "AUPR-IN": _precision_area(true_id, false_id),
        "AUPR-OUT": _precision_area(true, false),
        "FPR95TPR": fpr[np.arange(len(fpr)), reached],
    }


def _binned(scores: np.ndarray, drawn: np.ndarray, edges: np.ndarray) -> np.ndarray:
    bins = np.minimum(np.searchsorted(edges, scores), len(edges) - 1)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.diff(bins[order], prepend=-1))
    binned = np.zeros((len(drawn), len(edges)), dtype=np.int64)
    binned[:, bins[order][starts]] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return binned


def _precision_area(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    accepted = true + false
    # before the first image that was drawn there is no precision, and no recall to weigh it
    precision = np.divide(true, accepted, out=np.ones_like(true), where=accepted > 0)
    recall = true / true[:, -1:]
    first = ((0, 0), (1, 0))
    return _area(np.pad(recall, first), np.pad(precision, first, constant_values=1))


def _area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    area: np.ndarray = (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1)
    return area
