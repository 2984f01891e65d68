"""Detectors that pull batches from a loader, fitted on batches that are pushed."""

from collections.abc import Callable, Iterator

import torch
from greenlet import getcurrent, greenlet
from pytorch_ood.api import Detector
from torch import Tensor

from isomax_evaluation.detection.draws import Draws
from isomax_evaluation.output.errors import one_line

Batch = tuple[Tensor, Tensor]


class Feeding:
    """Runs ``detector.fit(loader)`` on the batches of a pass that it shares with others.

    The fit runs only while :meth:`give` waits for it: what it does to the model between two
    batches (hooks, gradients) never meets another forward pass. It is a greenlet, not a thread:
    what a fit keeps of each batch would pin the memory that its thread's allocator has freed.
    """

    def __init__(self, detector: Detector, draws: Draws) -> None:
        """:param draws: the random numbers of the fit"""
        self._detector, self._draws = detector, draws
        self._giver, self._fitting = getcurrent(), greenlet(self._fit)
        self._error: Exception | None = None

    def give(self, batch: Batch) -> None:
        """Let the fit have a batch; returns when it asks for the next one."""
        self._go_on(batch)

    def finish(self) -> str | None:
        """Let the fit come to its end; the reason why it failed, if it did."""
        self._go_on(None)
        return None if self._error is None else one_line(self._error)

    def _go_on(self, batch: Batch | None) -> None:
        if self._fitting.dead:
            return
        # a fit that waits for a batch inside no_grad() has switched gradients off for all
        with torch.set_grad_enabled(torch.is_grad_enabled()), self._draws():
            self._fitting.switch(batch)

    def _fit(self, first: Batch | None) -> None:
        try:
            self._detector.fit(_Loader(first, self._giver.switch))
        except Exception as error:  # reported by finish()
            self._error = error


class _Loader:
    """What the fit takes for a loader. It may look at the first batch and begin again, once."""

    def __init__(self, first: Batch | None, ask: Callable[[], Batch | None]) -> None:
        self._first, self._ask, self._count = first, ask, int(first is not None)

    def __iter__(self) -> Iterator[Batch]:
        if self._count > 1:
            raise RuntimeError("reads the training images more than once")
        batch = self._first
        while batch is not None:
            yield batch
            gradients = torch.is_grad_enabled()
            batch = self._ask()
            torch.set_grad_enabled(gradients)
            self._count += batch is not None

    def __len__(self) -> int:
        return self._count
