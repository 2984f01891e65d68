"""Tracking while something runs: a process of its own mirrors the output folder.

What runs never waits for the tracking server, and knows nothing of it.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from isomax_adapters.mlflow.addresses import uri_for
from isomax_adapters.mlflow.content import SYSTEM_METRICS
from isomax_adapters.mlflow.errors import TrackingError
from isomax_adapters.mlflow.places import open_run
from isomax_adapters.mlflow.server import check
from isomax_adapters.mlflow.system_metrics import SystemMetrics
from isomax_adapters.mlflow.tracking import track

SECONDS = 10.0  # between looks at the folder, and between samples of the system metrics
PATIENCE = 60.0  # seconds for what is being sent when the run ends
_WARNED = "warned"


class LiveTracking:
    """Track an output folder while it is being filled.

    >>> with LiveTracking("isomax-out") as tracking:                          # doctest: +SKIP
    ...     train("photos", "isomax-out", started=tracking.start)

    On leaving, what is missing is sent; :attr:`complete` says whether that was possible.
    """

    def __init__(
        self,
        folder: str | Path,
        uri: str | None = None,
        offline_ok: bool = False,
        register: str | None = None,
    ) -> None:
        """
        :param folder: the output folder; need not be there yet
        :param uri: as :func:`isomax_adapters.mlflow.track` takes it
        :param offline_ok: say so and go on if the tracking server cannot be used
        :param register: the name that a model is to be registered under
        :raises TrackingError: if it cannot, and ``offline_ok`` is false
        """
        self.folder = Path(folder).resolve()
        self.uri = uri_for(self.folder, uri)
        self.within = open_run(self.uri)  # the process knows no active run
        self.complete = False
        self.warned = False
        self.process: multiprocessing.process.BaseProcess | None = None
        try:
            check(self.folder, self.uri, register)
        except TrackingError as error:
            if not offline_ok:
                raise
            self._warn(f"{error.reason}; going on without it")

    def start(self) -> None:
        """The folder is there; look at it from now on."""
        context = multiprocessing.get_context("spawn")  # no locks of the training's threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_follow,
            args=(self.folder, self.uri, self.within, self.warned, theirs),
            daemon=True,
        )
        self.process.start()
        theirs.close()
        atexit.register(self.connection.close)  # without a "with", it would wait for ever

    def __enter__(self) -> "LiveTracking":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is None:
            return  # it did not come to a start
        self._stop()
        status = "KILLED" if kind is KeyboardInterrupt else "FAILED" if kind else None
        try:
            track(self.folder, self.uri, status, self.within)
            self.complete = True
        except TrackingError as failure:
            self._warn(str(failure))

    def _stop(self) -> None:
        assert self.process is not None
        try:
            with contextlib.suppress(OSError):  # it has ended by itself
                self.connection.send("stop")
            self.process.join(PATIENCE)
        finally:
            self.process.kill()  # what it has sent is known; the rest is sent again
            self.process.join()
        with contextlib.suppress(EOFError, OSError):  # it had nothing to say
            self.warned |= self.connection.poll() and self.connection.recv() == _WARNED
        self.connection.close()

    def _warn(self, message: str) -> None:
        if not self.warned:
            print(f"\nisomax: {message}", file=sys.stderr, flush=True)
        self.warned = True


def _follow(folder: Path, uri: str, within: str | None, warned: bool, parent: Connection) -> None:
    """The process: look, send, wait, until told to stop or the parent is gone."""
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.SIG_IGN)  # the parent's to handle
    if hasattr(os, "nice"):
        os.nice(10)  # the work comes first
    seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SECONDS)
    system, status = SystemMetrics(folder / SYSTEM_METRICS), "RUNNING"
    while True:
        try:
            track(folder, uri, status, within)
        except TrackingError as error:
            if not warned:
                warned = True
                with contextlib.suppress(OSError):  # the parent is gone
                    parent.send(_WARNED)
                print(
                    f"\nisomax: {error.reason}; the work goes on, and what is missing is sent when "
                    f"MLflow answers again, or by 'isomax track {folder}'",
                    file=sys.stderr,
                    flush=True,
                )
        if status == "KILLED":
            return
        try:
            if parent.poll(seconds):
                parent.recv()
                return
        except (EOFError, OSError):
            status = "KILLED"  # the parent is gone: once more, then stop
            continue
        with contextlib.suppress(Exception):  # a full disk; the work matters, not this
            system.sample()
