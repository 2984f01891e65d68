"""Times measured side by side, so that a noisy machine is noisy for all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

NARROW = 0.05  # of the ratio: half of its interval, from which on it is not measured again


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
            times[name].append(seconds_of(function))
    return {name: statistics.median(measured) for name, measured in times.items()}


@dataclass(frozen=True)
class Ratio:
    """What a function takes beside another one."""

    seconds: float  #: median
    ratio: float  #: median
    spread: float  #: half of the 95% interval of the ratio's median; NaN of a run or two


def repeated(
    once: Callable[[], tuple[float, float]], budget: float, least: int = 5, most: int = 31
) -> Ratio:
    r"""Measure until the interval of the ratio is narrow, or the time is spent.

    The interval is that of a notched box plot: with the quartiles :math:`q_1, q_3` of :math:`n`
    ratios, the median :math:`\pm 1.57 (q_3 - q_1) / \sqrt n`. The first run warms up; it counts
    only where there is time for no other.

    :param once: gives seconds and a ratio
    :param budget: seconds; one run is made whatever it takes
    """
    ends = time.perf_counter() + budget
    runs, spread = [once()], float("nan")
    while len(runs) <= most and time.perf_counter() < ends:
        runs.append(once())
        ratios = [ratio for _, ratio in runs[1:]]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        if len(ratios) > 2:
            spread = float(1.57 * (high - low) / len(ratios) ** 0.5)
        if len(ratios) >= least and spread <= NARROW * middle:
            break
    seconds, ratio = np.median(runs[1:] or runs, axis=0)
    return Ratio(float(seconds), float(ratio), spread)


def ratio_to(
    baseline: Callable[[], object], function: Callable[[], object], budget: float, least: int = 5
) -> Ratio:
    """Two functions in turns, as :func:`repeated`."""

    def once() -> tuple[float, float]:
        beside, seconds = seconds_of(baseline), seconds_of(function)
        return seconds, seconds / beside

    return repeated(once, budget, least)


def seconds_of(function: Callable[[], object]) -> float:
    """What a run takes."""
    _wait_for_accelerator()
    started = time.perf_counter()
    function()
    _wait_for_accelerator()
    return time.perf_counter() - started


def _wait_for_accelerator() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
