"""MLflow's own servers, as processes that tests start and kill."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


class Server:
    """A process that answers on a port of this machine."""

    def __init__(self, log, *arguments, health="/health", **environment):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log, self.health = log, health
        self.command = [sys.executable, "-m", "mlflow", *arguments, "--port", str(self.port)]
        self.environment = {**os.environ, **environment}
        self.process = None

    def start(self):
        """Return when it answers."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(self.uri + self.health, timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        raise RuntimeError(f"no answer from {self.command}: {self.log.read_text()}")

    def kill(self):
        """At once, with its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def tracking_server(folder):
    """``mlflow server`` with everything in one folder."""
    return Server(
        folder / "server.log",
        "server",
        "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
        "--serve-artifacts",
        "--workers", "1",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # seven more processes
    )  # fmt: skip


def scoring_server(folder, model_uri, **environment):
    """``mlflow models serve`` of one model."""
    return Server(
        folder / "scoring.log",
        "models", "serve", "-m", model_uri, "--env-manager", "local",
        health="/ping",
        **environment,
    )  # fmt: skip
