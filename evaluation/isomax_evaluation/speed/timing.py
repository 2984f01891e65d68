"""Times measured side by side, so that a noisy machine is noisy for all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

SPREAD = 0.1  # of the middle half of the ratios, up to which a ratio counts as stable


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2, pause: float = 0
) -> dict[str, float]:
    """Median seconds of each function, run in turns so that a noisy machine is noisy for all.

    :param pause: seconds before each run, in which thread pools of the one before come to rest
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(pause)
            times[name].append(_seconds(function))
    return {name: statistics.median(measured) for name, measured in times.items()}


@dataclass(frozen=True)
class Ratio:
    """What a function takes beside another one."""

    seconds: float  #: median
    ratio: float  #: median of the ratios of pairs of runs
    stable: bool  #: whether the middle half of the ratios lies within :data:`SPREAD` of it


def ratio_to(
    baseline: Callable[[], object],
    function: Callable[[], object],
    least: int = 7,
    most: int = 31,
    warmup: int = 2,
) -> Ratio:
    """Run two functions in turns, until the ratio of their times is stable or has been measured
    ``most`` times."""
    for _ in range(warmup):
        baseline()
        function()
    ratios: list[float] = []
    seconds: list[float] = []
    stable = False
    while len(ratios) < least or (not stable and len(ratios) < most):
        beside = _seconds(baseline)
        seconds.append(_seconds(function))
        ratios.append(seconds[-1] / beside)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        stable = bool(middle - low <= SPREAD * middle and high - middle <= SPREAD * middle)
    return Ratio(statistics.median(seconds), statistics.median(ratios), stable)


def _seconds(function: Callable[[], object]) -> float:
    _wait_for_accelerator()
    started = time.perf_counter()
    function()
    _wait_for_accelerator()
    return time.perf_counter() - started


def _wait_for_accelerator() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
