"""Quantiles of arrays that do not fit into memory, as ``np.quantile`` gives them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from isomax_adapters.runtime.errors import InputError

CHUNK = 4 * 2**20  # values looked at at a time
COLUMNS = 2**28  # values of whole columns held at a time, 1 GiB


def overall_quantile(values: np.ndarray, share: float) -> float:
    """The value below which a share of all float32 values lies.

    Exact in two passes over the values, with a fixed amount of memory: they are counted by the
    upper, then by the lower half of their bits, whose order is that of the numbers.

    :param values: of any shape; one that is memory-mapped is never read whole
    :param share: in :math:`[0, 1]`
    :raises InputError: if some are NaN
    """
    values = values.reshape(-1)
    place = share * (len(values) - 1)
    low = int(np.floor(place))
    ranks = [low, min(low + 1, len(values) - 1)]

    def keys() -> Iterable[np.ndarray]:
        for start in range(0, len(values), CHUNK):
            chunk = np.asarray(values[start : start + CHUNK])
            if np.isnan(chunk).any():
                raise InputError("some values are NaN; look at the model that gave them")
            bits = chunk.view(np.uint32)
            yield np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))

    def counts(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(1 << 16, dtype=np.int64)
        for chunk in keys():
            total += np.bincount(of(chunk), minlength=1 << 16)
        return total

    upper = np.cumsum(counts(lambda key: key >> 16))
    found = []
    for rank in ranks:
        group = int(np.searchsorted(upper, rank, side="right"))
        before = int(upper[group - 1]) if group else 0
        lower = np.cumsum(counts(lambda key, g=group: key[key >> 16 == g] & 0xFFFF))  # type: ignore[misc]
        key = np.uint32((group << 16) + int(np.searchsorted(lower, rank - before, side="right")))
        bits = key ^ np.uint32(1 << 31) if key >> 31 else ~key
        found.append(float(np.array(bits, np.uint32).view(np.float32)))
    return found[0] + (found[1] - found[0]) * (place - low)


def column_quantiles(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles of each column, a group of columns at a time.

    :param values: :math:`N \\times D`; one that is memory-mapped is read once for every group
    :param shares: :math:`S` of them, in :math:`[0, 1]`
    :return: :math:`S \\times D`
    """
    step = max(1, COLUMNS // max(1, len(values)))
    groups = [
        np.quantile(np.array(values[:, start : start + step]), shares, axis=0, overwrite_input=True)
        for start in range(0, values.shape[1], step)
    ]
    return np.concatenate(groups, axis=1)
