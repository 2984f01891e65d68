"""Conformal p-values from sorted calibration scores: numpy alone.

The same as :func:`isomax.calibration.p_values`, without torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


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
    """p-values as a step function of the score: ``values[i]`` if the score is at most ``i`` of
    ``bounds``, :math:`(i + 1) / (n + 1)`."""

    bounds: np.ndarray  #: float32, descending: of each calibration score what still ties with it
    values: np.ndarray  #: float32, ascending, one more than bounds

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> "Steps":
        """From the metadata of an exported file, checked."""
        scores = np.array(metadata["scores"][::-1], np.float64)
        bounds = (scores + metadata["tolerance"]).astype(np.float32)
        return cls(bounds, floored(np.arange(1, len(bounds) + 2), len(bounds) + 1))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Of outlier scores, float32 of the same shape; NaN has the smallest."""
        return self.values[len(self.bounds) - np.searchsorted(self.bounds[::-1], scores)]

    def threshold(self, alpha: float) -> float | None:
        """The score above which p-values are at most alpha; ``None`` if there is none."""
        rejected = int(at_most(self.values, alpha).sum())
        return float(self.bounds[rejected - 1]) if rejected else None


def at_most(p_values: np.ndarray, alpha: float) -> np.ndarray:
    """Which p-values are at most alpha, in double precision: the verdict, the only one there is."""
    return p_values.astype(np.float64) <= float(alpha)
