"""Conformal p-values from sorted calibration scores: numpy alone.

The same as :func:`isomax.calibration.p_values`, without torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isomax_adapters.runtime.metadata import WITHOUT_P_VALUES


def floored(numerators: np.ndarray, denominator: int) -> np.ndarray:
    """The largest float32 not above each fraction of whole numbers.

    What lies at or below a number in any precision then does so in float32 too: the float32 next
    to 1/20 is above 0.05.

    :param numerators: not above the denominator
    :param denominator: below 2^29
    """
    nearest = (numerators / denominator).astype(np.float32)
    above = nearest.astype(np.float64) * denominator > numerators  # exact
    return np.where(above, np.nextafter(nearest, np.float32(0)), nearest)


@dataclass(frozen=True)
class Steps:
    """p-values as a step function of the score: ``values[i]`` if ``i`` of ``scores`` are as large.

    With all calibration scores, value i is (i + 1) / (n + 1). Older files have a table of rates
    and thresholds: with some of the scores left out, a p-value is the next larger one.
    """

    scores: np.ndarray  #: descending
    rates: np.ndarray  #: float64: the false-alarm rate of each score as a threshold, ascending
    values: np.ndarray  #: float32, one more than scores

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> "Steps":
        """From the metadata of an exported file, checked."""
        samples = metadata["samples"]
        if metadata["format"] == WITHOUT_P_VALUES:
            table = {round(rate * (samples + 1)): value for rate, value in metadata["curve"]}
            # its own threshold may be one of those that were left out
            table[int(metadata["alpha"] * (samples + 1) + 1e-9)] = metadata["threshold"]
            ranks, scores = np.array(sorted(table)), np.array([table[k] for k in sorted(table)])
        else:
            ranks, scores = np.arange(1, samples + 1), np.array(metadata["scores"][::-1])
        values = floored(np.append(ranks, samples + 1), samples + 1)
        return cls(scores, ranks / (samples + 1), values)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Of outlier scores, float32 of the same shape; NaN has the smallest."""
        ascending = self.scores[::-1].astype(np.float32)
        return self.values[len(ascending) - np.searchsorted(ascending, scores)]

    def threshold(self, alpha: float) -> float | None:
        """The score above which p-values are at most alpha; ``None`` if there is none."""
        places = np.flatnonzero(self.rates <= alpha + 1e-12)
        return float(self.scores[places[-1]]) if len(places) else None
