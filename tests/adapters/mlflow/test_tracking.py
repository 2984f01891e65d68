"""Mirroring an output folder into MLflow: folders made by hand, a real server that is killed."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import mlflow
import pytest

from isomax_adapters.mlflow import LiveTracking, TrackingError, track, ui_command
from isomax_adapters.mlflow.server import default_uri

from .servers import tracking_server


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow's tables, empty; making them takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, database):
    """A run of three epochs, not finished."""
    path = tmp_path / "out"
    path.mkdir()
    shutil.copy(database, path)
    (path / "settings.json").write_text(json.dumps({"loss": "isomax", "recipe": {"lr": 0.1}}))
    write_epochs(path, 3)
    return path


@pytest.fixture
def server(tmp_path, database):
    shutil.copy(database, tmp_path / "server.db")
    server = tracking_server(tmp_path)
    yield server
    server.kill()


def write_epochs(folder, count):
    rows = [{"epoch": e + 1, "time": 1e9 + e, "train_loss": 1 / (e + 1)} for e in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(folder):
    (folder / "summary.json").write_text(json.dumps({"test_accuracy": 0.5}))
    (folder / "model").mkdir()
    (folder / "model" / "calibration.json").write_text("{}")


def epochs(count):
    return [(e + 1, 1 / (e + 1)) for e in range(count)]


def history(uri, metric="train_loss"):
    """The only run, and the steps and values of a metric as they are stored."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'isomax'")
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = client.get_metric_history(run.info.run_id, metric)
    return run, [(metric.step, metric.value) for metric in metrics]


def wait_for(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("waited for a minute")


def test_what_is_missing_is_sent_once(folder):
    uri = track(folder)
    assert ui_command(uri) == f"mlflow ui --backend-store-uri {uri}"
    run, metrics = history(uri)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"loss": "isomax", "recipe.lr": "0.1"}
    assert [step for step, _ in metrics] == [1, 2, 3]
    write_epochs(folder, 5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "ti')  # being written
    track(folder)
    assert history(uri)[1] == epochs(5)
    write_epochs(folder, 6)
    finish(folder)
    track(folder)
    run, metrics = history(uri)
    assert metrics == epochs(6)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == 0.5


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_killed_while_sending(folder, tmp_path, store, monkeypatch):
    """What has arrived but is not written down as sent is not sent again."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"sqlite:///{folder / 'mlflow.db'}" if store == "sqlite" else (tmp_path / "runs").as_uri()
    log_batch = mlflow.MlflowClient.log_batch

    def fails_after_sending(self, run_id, metrics=(), **kwargs):
        log_batch(self, run_id, metrics=metrics, **kwargs)
        if metrics:
            raise ConnectionResetError(104, "Connection reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", fails_after_sending)
        with pytest.raises(TrackingError, match="Connection reset by peer"):
            track(folder, uri)
    write_epochs(folder, 5)
    track(folder, uri)
    assert sorted(history(uri)[1]) == epochs(5)
    # killed between making the run and writing its id down
    state = json.loads((folder / "tracking.json").read_text())
    (folder / "tracking.json").write_text(
        json.dumps({k: {"key": s["key"], "in_doubt": True} for k, s in state.items()})
    )
    track(folder, uri)
    assert sorted(history(uri)[1]) == epochs(5)


def test_two_at_once_send_everything_once(folder):
    threads = [threading.Thread(target=track, args=(folder,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history(track(folder))[1] == epochs(3)


def test_a_server_that_is_not_there_costs_nothing(folder, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port}"
    with pytest.raises(TrackingError, match=f"cannot track to {uri}: Connection refused; .*send"):
        track(folder, uri)
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer: .*--offline-ok"):
        LiveTracking(folder, uri)
    assert history(track(folder))[1] == epochs(3)


def test_a_password_is_neither_shown_nor_stored(folder, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as error:
        track(folder, f"http://me:secret@127.0.0.1:{free_port}")
    assert f"http://me:***@127.0.0.1:{free_port}" in str(error.value)
    assert "secret" not in str(error.value) + (folder / "tracking.json").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(TrackingError, match="no output folder of isomax"):
        track(tmp_path)


def test_a_server_that_is_killed_and_comes_back(folder, server, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    said = []

    def has_said_so():
        said.append(capfd.readouterr().err)
        return "isomax: cannot track to" in said[-1]

    def arrived():
        try:
            return len(history(server.uri)[1]) == 3
        except ValueError:  # no run yet
            return False

    def samples():
        path = folder / "system.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    with LiveTracking(folder, server.uri) as tracking:
        tracking.start()
        wait_for(arrived)
        server.kill()
        write_epochs(folder, 4)
        wait_for(has_said_so)
        write_epochs(folder, 5)
        before = samples()
        wait_for(lambda: samples() > before)
    assert not tracking.complete
    said.append(capfd.readouterr().err)
    assert "".join(said).count("isomax: ") == 1
    assert f"'isomax track {folder}'" in "".join(said)

    server.start()
    for _ in range(2):
        track(folder, server.uri)
        run, metrics = history(server.uri)
        assert metrics == epochs(5)
    assert run.info.status == "RUNNING"
    rows = [json.loads(line) for line in (folder / "system.jsonl").read_text().splitlines()]
    name = "system/cpu_utilization_percentage"
    assert history(server.uri, name)[1] == [(row["epoch"], row[name]) for row in rows]


def test_a_run_that_fails_is_marked_and_goes_on_when_resumed(folder):
    def fails(tracking):
        with tracking:
            tracking.start()
            raise KeyError

    tracking = LiveTracking(folder)
    with pytest.raises(KeyError):
        fails(tracking)
    assert tracking.complete
    assert history(tracking.uri)[0].info.status == "FAILED"
    with LiveTracking(folder) as tracking:
        tracking.start()
        wait_for(lambda: history(tracking.uri)[0].info.status == "RUNNING")
        finish(folder)
    assert history(tracking.uri)[0].info.status == "FINISHED"


def test_a_run_that_is_killed_is_marked(folder):
    code = (
        "import os, signal, sys, time; from isomax_adapters.mlflow import LiveTracking\n"
        "LiveTracking(sys.argv[1]).start(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert run.returncode == -signal.SIGKILL

    def status():
        try:
            return history(default_uri(folder))[0].info.status
        except ValueError:  # no run yet
            return None

    wait_for(lambda: status() == "KILLED")
    assert history(default_uri(folder))[1] == epochs(3)
