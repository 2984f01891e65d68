"""Random numbers of a detector's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Draws:
    """PyTorch's random numbers for one detector: the same, whatever else draws.

    So that a detector added later scores as it would have done among the others.
    """

    def __init__(self, seed: int | None) -> None:
        """:param seed: ``None`` leaves the detector to the random numbers of the process"""
        self._state = None
        if seed is not None:
            self._state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._state is None:
            yield
            return
        outside = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(outside)
