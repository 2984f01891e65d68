"""MLflow's own servers, as processes that tests start and kill."""

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
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


@contextlib.contextmanager
def in_front_of(server, answers):
    """The URI of a proxy, where ``answers`` of method and path may give status and text instead."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length)
            status, body = answers(self.command, self.path) or self.ask(sent)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def ask(self, sent):
            kept = {k: v for k, v in self.headers.items() if k in ("Content-Type", "Accept")}
            request = urllib.request.Request(
                server.uri + self.path, sent or None, kept, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def log_message(self, *arguments):
            pass

    for command in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{command}", Handler.answer)
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()


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
