"""Tracking while something runs: a process of its own mirrors the output folder.

What runs never waits for the tracking server, and knows nothing of it.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from isomax_adapters.mlflow.tracking.content import SYSTEM_METRICS
from isomax_adapters.mlflow.tracking.errors import TrackingError
from isomax_adapters.mlflow.tracking.places import open_run, uri_for
from isomax_adapters.mlflow.tracking.server import check
from isomax_adapters.mlflow.tracking.sync import track

SECONDS = 10.0  # between looks at the folder, and between samples of the system metrics
PATIENCE = 60.0  # seconds for what is being sent when the run ends


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
        self.process: multiprocessing.process.BaseProcess | None = None
        self.context = multiprocessing.get_context("spawn")  # no locks of the training's threads
        self.warned = self.context.RawValue("b", 0)  # known even if the process is killed
        try:
            check(self.folder, self.uri, register)
        except TrackingError as error:
            if not offline_ok:
                raise
            _warn(f"{error.reason}; going on without it", self.warned)

    def start(self) -> None:
        """The folder is there; look at it from now on."""
        self.connection, theirs = self.context.Pipe()
        given = (self.folder, self.uri, self.within, self.warned, theirs)
        self.process = self.context.Process(target=_follow, args=given, daemon=True)
        self.process.start()
        theirs.close()
        atexit.register(self.connection.close)  # without a "with", it would wait for ever

    def __enter__(self) -> "LiveTracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.process is None:
            return  # it did not come to a start
        try:
            with contextlib.suppress(OSError):  # it has ended by itself
                self.connection.send("stop")
            self.process.join(PATIENCE)
        finally:
            self.process.kill()  # what it has sent is known; the rest is sent again
            self.process.join()
            self.connection.close()
        status = "KILLED" if kind is KeyboardInterrupt else "FAILED" if kind else None
        try:
            track(self.folder, self.uri, status, self.within)
            self.complete = True
        except TrackingError as failure:
            _warn(str(failure), self.warned)


def _warn(message: str, warned: Any) -> None:
    """Once, whichever process it is."""
    if not warned.value:
        print(f"\nisomax: {message}", file=sys.stderr, flush=True)
    warned.value = 1


def _follow(folder: Path, uri: str, within: str | None, warned: Any, parent: Connection) -> None:
    """The process: look, send, wait, until told to stop or the parent is gone."""
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.SIG_IGN)  # the parent's to handle
    if hasattr(os, "nice"):
        os.nice(10)  # the work comes first
    seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SECONDS)
    # MLflow's own monitor of them all opens a store of its own, and waits for it
    monitors, status = [CPUMonitor(), DiskMonitor(), NetworkMonitor()], "RUNNING"
    with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no nvidia-ml-py
        monitors.append(GPUMonitor())
    while True:
        try:
            track(folder, uri, status, within)
        except TrackingError as error:
            way_out = "what is missing is sent when MLflow answers again, or by 'isomax track"
            _warn(f"{error.reason}; the work goes on, and {way_out} {folder}'", warned)
        if status == "KILLED":
            return
        try:
            if parent.poll(seconds):
                parent.recv()
                return
        except (EOFError, OSError):
            status = "KILLED"  # the parent is gone: once more, then stop
        with contextlib.suppress(Exception):  # a full disk; the work matters, not this
            _sample(monitors, folder / SYSTEM_METRICS)


def _sample(monitors: list[Any], path: Path) -> None:
    """Append a line of MLflow's system metrics, numbered on from those that are there."""
    whole = path.read_bytes() if path.is_file() else b""
    whole = whole[: whole.rfind(b"\n") + 1]  # a kill may have cut the last line off
    row = {"epoch": whole.count(b"\n") + 1, "time": time.time()}
    for monitor in monitors:
        monitor.collect_metrics()
        found = monitor.aggregate_metrics()
        row |= {f"system/{name}": value for name, value in found.items()}
        monitor.clear_metrics()
    with path.open("ab") as file:
        file.truncate(len(whole))
        file.write(json.dumps(row).encode() + b"\n")
