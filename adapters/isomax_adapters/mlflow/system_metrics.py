"""How busy the machine is: MLflow's system metrics, written to a file rather than sent."""

import contextlib
import json
import time
from pathlib import Path

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor


class SystemMetrics:
    """Samples, one line each in a file, numbered on from those that are there."""

    def __init__(self, path: Path) -> None:
        """
        :param path: the file; made at the first sample
        """
        self.path = path
        self.monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no nvidia-ml-py
            self.monitors.append(GPUMonitor())
        self.count = 0
        if path.is_file():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # a kill may have cut the last line off
            path.write_bytes(whole)
            self.count = whole.count(b"\n")

    def sample(self) -> None:
        """Append one line."""
        row = {"epoch": self.count + 1, "time": time.time()}
        for monitor in self.monitors:
            monitor.collect_metrics()
            found = monitor.aggregate_metrics()
            row |= {f"system/{name}": value for name, value in found.items()}
            monitor.clear_metrics()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.count += 1
