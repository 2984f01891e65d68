"""Detectors that pull batches from a loader, fitted on batches that are pushed."""

import threading
from collections.abc import Iterator
from queue import Queue

from pytorch_ood.api import Detector
from torch import Tensor

from isomax_evaluation.errors import one_line

Batch = tuple[Tensor, Tensor]


class Feeding:
    """Runs ``detector.fit(loader)`` on the batches of a pass that it shares with others.

    The fit has a thread of its own, and runs only while :meth:`give` waits for it: what it does to
    the model between two batches (hooks, gradients) never meets another forward pass.
    """

    def __init__(self, detector: Detector) -> None:
        self._given: Queue[Batch | None] = Queue(1)
        self._taken: Queue[None] = Queue(1)
        self._error: Exception | None = None
        self._done = False
        self._thread = threading.Thread(target=self._fit, args=(detector,), daemon=True)

    def give(self, batch: Batch) -> None:
        """Let the fit have a batch; returns when it asks for the next one."""
        self._pass(batch)

    def finish(self) -> str | None:
        """Let the fit come to its end; the reason why it failed, if it did."""
        self._pass(None)
        if self._thread.is_alive():
            self._thread.join()
        return None if self._error is None else one_line(self._error)

    def _pass(self, batch: Batch | None) -> None:
        if self._done:
            return
        self._given.put(batch)
        if not self._thread.ident:
            self._thread.start()
        self._taken.get()

    def _fit(self, detector: Detector) -> None:
        try:
            detector.fit(_Loader(self._given, self._taken))
        except Exception as error:  # reported by finish()
            self._error = error
        self._done = True
        self._taken.put(None)


class _Loader:
    """What the fit takes for a loader. It may look at the first batch and begin again, once."""

    def __init__(self, given: "Queue[Batch | None]", taken: "Queue[None]") -> None:
        self._given, self._taken = given, taken
        self._batches: list[Batch] = []
        self._count = 0

    def __iter__(self) -> Iterator[Batch]:
        if self._count > 1:
            raise RuntimeError("reads the training images more than once")
        if not self._count:
            first = self._given.get()
            if first is None:
                return
            self._count, self._batches = 1, [first]
        yield self._batches[0]
        while True:
            self._taken.put(None)
            batch = self._given.get()
            if batch is None:
                return
            self._count += 1
            yield batch

    def __len__(self) -> int:
        return self._count
