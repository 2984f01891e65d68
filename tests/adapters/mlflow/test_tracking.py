"""Mirroring an output folder into MLflow: folders made by hand, a real server that is killed."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import mlflow
import pytest

from isomax_adapters.mlflow import (
    LiveTracking,
    TrackingError,
    ask_to_register,
    check_name,
    track,
    ui_command,
)
from isomax_adapters.mlflow.tracking import live, server
from isomax_adapters.mlflow.tracking.places import default_uri

from .folders import finish, write_epochs
from .servers import tracking_server


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def mlflow_server(tmp_path, database):
    shutil.copy(database, tmp_path / "server.db")
    process = tracking_server(tmp_path)
    yield process
    process.kill()


@pytest.fixture
def passed(monkeypatch):
    """Names and steps of the metrics handed to MLflow; its SQL stores drop what they have."""
    found, log_batch = [], mlflow.MlflowClient.log_batch

    def counted(self, run_id, metrics=(), **kwargs):
        found.extend((metric.key, metric.step) for metric in metrics)
        log_batch(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    return found


def epochs(count):
    return [(e + 1, 1 / (e + 1)) for e in range(count)]


def history(uri, metric="train_loss"):
    """The only run, and the steps and values of a metric as they are stored."""
    (run,) = runs_of(uri)
    metrics = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    return run, [(metric.step, metric.value) for metric in metrics]


def runs_of(uri):
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'isomax'")
    return client.search_runs([experiment.experiment_id])


def files_of(uri, run, folder=None):
    found = mlflow.MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id, folder)
    return {item.path for item in found}


def wait_for(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("waited for a minute")


def test_what_is_missing_is_sent_once(folder, passed):
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
    track(folder)
    assert len(passed) == len(set(passed)) == 7


@pytest.mark.parametrize("store", ["sqlite", "files"])
@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"": 3}'])
def test_killed_while_sending(folder, tmp_path, store, damage, monkeypatch, passed):
    """What has arrived but is not written down as sent is not sent again."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = default_uri(folder) if store == "sqlite" else (tmp_path / "runs").as_uri()
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
    # killed between making the run and writing its id down, or the file is damaged
    if damage is None:
        (folder / "tracking.json").unlink()
    else:
        (folder / "tracking.json").write_text(damage)
    track(folder, uri)
    assert sorted(history(uri)[1]) == epochs(5)
    assert sorted(passed) == [("train_loss", step + 1) for step in range(5)]


def test_what_has_not_changed_is_not_asked_for_while_it_runs(folder, monkeypatch):
    def refuses(self, run_id):
        raise ConnectionRefusedError(111, "Connection refused")

    track(folder, unfinished="RUNNING")
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "get_run", refuses)
        track(folder, unfinished="RUNNING")
        write_epochs(folder, 4)
        with pytest.raises(TrackingError, match="Connection refused"):
            track(folder, unfinished="RUNNING")
        with pytest.raises(TrackingError, match="Connection refused"):
            track(folder)  # asked for by a person: it may have been deleted since
    assert history(track(folder))[1] == epochs(4)


def test_a_sample_that_was_cut_off_is_written_anew(tmp_path):
    path = tmp_path / "system.jsonl"
    path.write_text('{"epoch": 1}\n{"ep')
    for _ in range(2):
        live._sample([], path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_each_file_is_in_doubt_by_itself(folder, monkeypatch, passed):
    log_batch = mlflow.MlflowClient.log_batch

    def fails_after_sending(self, run_id, metrics=(), **kwargs):
        log_batch(self, run_id, metrics=metrics, **kwargs)
        if any(metric.key == "system/cpu" for metric in metrics):
            raise ConnectionResetError(104, "Connection reset by peer")

    row = {"epoch": 1, "time": 1e9, "system/cpu": 50.0}
    (folder / "system.jsonl").write_text(json.dumps(row) + "\n")
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", fails_after_sending)
        with pytest.raises(TrackingError, match="Connection reset by peer"):
            track(folder)
    write_epochs(folder, 4)
    track(folder)
    assert len(passed) == len(set(passed)) == 5


def test_names_are_put_into_mlflows_alphabet(folder):
    rows = [("a & b (1)/", 0.1), ("a + b (1)/", 0.2), ("../é", 0.3), ("./", 0.4)]
    settings = {"loss": "isomax", "digests": {name: value for name, value in rows}}  # noqa: C416
    (folder / "settings.json").write_text(json.dumps(settings))
    finish(folder)
    lines = [f"{name},Entropic,0.9,0.01,{value},,," for name, value in rows]
    header = "ood,detector,accuracy,ECE,AUROC,AUPR-IN,AUPR-OUT,FPR95TPR"
    (folder / "results.csv").write_text("\n".join([header, *lines]) + "\n")
    run, _ = history(track(folder))
    assert sorted(run.data.params.values()) == ["0.1", "0.2", "0.3", "0.4", "isomax"]
    assert run.data.params["digests.a _ b _1_"] == "0.1"
    assert run.data.metrics["AUROC/a _ b _1_/Entropic"] == 0.1
    assert run.data.metrics["AUROC/_/é/Entropic"] == 0.3
    found = {value for name, value in run.data.metrics.items() if name.startswith("AUROC/")}
    assert found == {0.1, 0.2, 0.3, 0.4}


def test_a_table_that_has_grown_is_sent_on(folder, passed):
    finish(folder)
    header = "ood,detector,accuracy,ECE,AUROC,AUPR-IN,AUPR-OUT,FPR95TPR"
    rows = [f"noise,{name},0.9,0.01,0.{digit},,," for digit, name in enumerate(("A", "B", "C"), 1)]
    for count in (1, 1, 3, 3):
        (folder / "results.csv").write_text("\n".join([header, *rows[:count]]) + "\n")
        run, _ = history(track(folder))
        assert len([name for name in run.data.metrics if name.startswith("AUROC/")]) == count
    assert run.data.metrics["AUROC/noise/C"] == 0.3
    # what each class gets is a table too
    (folder / "classes.csv").write_text("class,images,recall,false_alarm_rate\nrare,10,0.5,1.0\n")
    client = mlflow.MlflowClient(tracking_uri=track(folder))
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/classes.json")
    assert table["data"] == [["rare", 10, 0.5, 1]]
    logged = client.get_run(run.info.run_id).data.tags["mlflow.loggedArtifacts"]
    assert {"path": "classes.json", "type": "table"} in json.loads(logged)
    assert len(passed) == len(set(passed))


def test_what_cannot_be_sent_withholds_nothing_else(folder, monkeypatch):
    (folder / "settings.json").write_text(json.dumps({"losses": ["isomax"]}))
    (folder / "errors.csv").write_text("name\n")
    for seed in (0, 1, 2):
        child = folder / "runs" / f"isomax-seed{seed}"
        child.mkdir(parents=True)
        (child / "settings.json").write_text(json.dumps({"loss": "isomax", "seed": seed}))
        write_epochs(child, 2)
    (folder / "runs" / "isomax-seed0" / "settings.json").write_text("{")
    (folder / "runs" / "isomax-seed1" / "metrics.jsonl").write_text("?\n")
    log_artifact = mlflow.MlflowClient.log_artifact

    def refuses(self, run_id, path, artifact_path=None):
        if path == str(folder / "errors.csv"):
            raise PermissionError(13, "Permission denied", path)
        log_artifact(self, run_id, path, artifact_path)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_artifact", refuses)
        with pytest.raises(TrackingError, match=r"errors\.csv: Permission denied") as error:
            track(folder)
    assert f"{folder}/runs/isomax-seed0/settings.json is damaged: " in str(error.value)
    assert f"{folder}/runs/isomax-seed1/metrics.jsonl is damaged: " in str(error.value)
    uri = default_uri(folder)
    runs = {run.info.run_name: run for run in runs_of(uri)}
    assert set(runs) == {"out", "isomax-seed1", "isomax-seed2"}
    assert runs["isomax-seed1"].data.params == {"loss": "isomax", "seed": "1"}
    assert runs["isomax-seed2"].data.metrics == {"train_loss": 0.5}
    assert files_of(uri, runs["out"]) == files_of(uri, runs["isomax-seed1"]) == {"settings.json"}
    # what is missing, later
    (folder / "runs" / "isomax-seed0" / "settings.json").write_text("{}")
    write_epochs(folder / "runs" / "isomax-seed1", 2)
    track(folder)
    runs = {run.info.run_name: run for run in runs_of(uri)}
    assert set(runs) == {"out", "isomax-seed0", "isomax-seed1", "isomax-seed2"}
    assert runs["isomax-seed1"].data.metrics == {"train_loss": 0.5}
    assert files_of(uri, runs["out"]) == {"settings.json", "errors.csv"}


def test_what_hangs_is_not_waited_for_again_and_again(folder, monkeypatch):
    tried = []

    def hangs(self, run_id, path, artifact_path=None):
        tried.append(path)
        raise TimeoutError

    finish(folder)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_artifact", hangs)
        patched.setattr("isomax_adapters.mlflow.tracking.errors._GIVE_UP", 0)
        with pytest.raises(TrackingError, match="timed out"):
            track(folder)
    assert len(tried) == 1
    run, _ = history(default_uri(folder))
    assert run.info.status == "FINISHED"
    track(folder)
    assert files_of(default_uri(folder), run) == {"settings.json", "summary.json", "model"}


def test_whatever_a_client_raises_is_one_line(folder, monkeypatch):
    def raises(self, *args, **kwargs):
        raise Exception("no credentials\nat all")

    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", raises)
    with pytest.raises(TrackingError, match=r"cannot track to .*: no credentials; the results"):
        track(folder)


def test_the_same_server_is_the_same_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    track(folder)
    track(folder, uri)
    write_epochs(folder, 4)
    track(folder, uri + "/")
    write_epochs(folder, 5)
    assert track(folder) == uri  # not SQLite, as it was used last
    assert sorted(history(uri)[1]) == epochs(5)
    assert history(track(folder, default_uri(folder)))[1] == epochs(5)
    assert track(folder) == default_uri(folder)


@pytest.mark.parametrize("lost", ["deleted", "missing"])
def test_a_run_that_was_deleted_is_made_again(folder, database, lost):
    uri = track(folder)
    before, _ = history(uri)
    if lost == "deleted":
        mlflow.MlflowClient(tracking_uri=uri).delete_run(before.info.run_id)
    else:
        # MLflow keeps the open file
        uri = f"sqlite:///{shutil.copy(database, folder / 'other.db')}"
        state = json.loads((folder / "tracking.json").read_text())
        (folder / "tracking.json").write_text(json.dumps({uri: state[""]}))
    write_epochs(folder, 4)
    track(folder, uri)
    run, metrics = history(uri)
    assert run.info.run_id != before.info.run_id
    assert metrics == epochs(4)
    assert files_of(uri, run) == {"settings.json"}


def test_children_follow_a_parent_that_is_made_again(folder):
    child = folder / "runs" / "isomax-seed0"
    child.mkdir(parents=True)
    (child / "settings.json").write_text("{}")
    uri = track(folder)
    (parent,) = [run for run in runs_of(uri) if run.info.run_name == "out"]
    mlflow.MlflowClient(tracking_uri=uri).delete_run(parent.info.run_id)
    track(folder)
    runs = {run.info.run_name: run for run in runs_of(uri)}
    assert runs["isomax-seed0"].data.tags["mlflow.parentRunId"] == runs["out"].info.run_id


def test_a_folder_that_was_moved_is_refused(folder):
    uri = track(folder)
    moved = folder.rename(folder.with_name("moved"))
    with pytest.raises(TrackingError, match=f"was tracked as {folder}, .*; move it back"):
        track(moved)
    with pytest.raises(TrackingError, match="move it back"):
        LiveTracking(moved)
    moved.rename(folder)
    write_epochs(folder, 4)
    assert track(folder) == uri


def test_a_file_that_is_being_written_is_not_sent(folder):
    finish(folder)
    (folder / "model" / ".model.safetensors.partial").write_text("half")
    uri = track(folder)
    assert files_of(uri, history(uri)[0], "model") == {"model/calibration.json"}


def test_a_model_that_is_missing_is_not_silently_unregistered(folder):
    ask_to_register(folder, "birds")
    track(folder)
    finish(folder)
    track(folder, unfinished="RUNNING")  # it is about to be exported
    with pytest.raises(TrackingError, match=r"'birds'.*run the same 'isomax train' command again"):
        track(folder)
    assert history(default_uri(folder))[0].info.status == "FINISHED"


@pytest.mark.parametrize("name", ["bird's", 'the "birds"', "birds?", "a/b", "", "b" * 257])
def test_names_that_cannot_be_registered_are_refused(name):
    check_name("Birds of 2024 (v2), é")
    with pytest.raises(TrackingError, match="no model can be registered"):
        check_name(name)


def test_two_at_once_send_everything_once(folder, passed):
    threads = [threading.Thread(target=track, args=(folder,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history(track(folder))[1] == epochs(3)
    assert len(passed) == 3


def test_a_server_that_is_not_there_costs_nothing(folder, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port}"
    with pytest.raises(TrackingError, match=f"cannot track to {uri}: Connection refused; .*send"):
        track(folder, uri)
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer: .*--offline-ok"):
        LiveTracking(folder, uri)
    assert history(track(folder, default_uri(folder)))[1] == epochs(3)


class BadGateway(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_error(502)

    do_GET = do_POST = answer  # noqa: N815


def test_a_password_is_neither_shown_nor_stored(folder, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    shown = []
    with (
        socket.create_server(("127.0.0.1", 0)) as hangs,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadGateway) as bad,
    ):
        threading.Thread(target=bad.serve_forever).start()
        for port in (free_port, hangs.getsockname()[1], bad.server_port):
            uri = f"http://me:secret@127.0.0.1:{port}"
            for use in (track, LiveTracking):
                with pytest.raises(TrackingError) as error:
                    use(folder, uri)
                assert f"http://me:***@127.0.0.1:{port}" in str(error.value)
                shown.append(str(error.value))
        bad.shutdown()
    with pytest.raises(TrackingError, match="passwords are not stored; set MLFLOW_TRACKING_URI"):
        track(folder)
    shown.append(ui_command(uri))
    shown.append(ui_command("postgresql://me:secret@somewhere/mlflow"))
    assert shown[-1] == "mlflow ui --backend-store-uri 'postgresql://me:***@somewhere/mlflow'"
    assert shown[-2] == f"open http://me:***@127.0.0.1:{bad.server_port}"
    assert "secret" not in "".join(shown) + (folder / "tracking.json").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(TrackingError, match="no output folder of isomax"):
        track(tmp_path)


def test_nothing_waits_for_a_server_that_hangs(folder, monkeypatch, capfd):
    monkeypatch.setitem(server._PATIENCE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setitem(server._PATIENCE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(live, "PATIENCE", 1)  # the process has the patience of 20 seconds
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        uri = f"http://127.0.0.1:{hangs.getsockname()[1]}"
        with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer: timed out"):
            LiveTracking(folder, uri)
        with LiveTracking(folder, uri, offline_ok=True) as tracking:
            tracking.start()
    assert not tracking.complete
    assert tracking.process.exitcode == -signal.SIGKILL
    assert capfd.readouterr().err.count("isomax: ") == 1


def test_the_process_outlives_errors_and_signals_that_are_not_its_own(folder, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    (folder / "metrics.jsonl").write_text("damaged\n")
    (folder / "system.jsonl").mkdir()  # no sample can be written
    said = []

    def has_said_so():
        said.append(capfd.readouterr().err)
        return "isomax: cannot track to" in said[-1]

    with LiveTracking(folder) as tracking:
        tracking.start()
        wait_for(has_said_so)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(tracking.process.pid, number)
        write_epochs(folder, 4)
        wait_for(lambda: history(tracking.uri)[1] == epochs(4))
        assert tracking.process.is_alive()
    assert tracking.complete


def test_it_is_said_once_even_if_the_process_is_killed(folder, mlflow_server, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_server.start()
    said = []

    def has_said_so():
        said.append(capfd.readouterr().err)
        return "isomax: cannot track to" in said[-1]

    with LiveTracking(folder, mlflow_server.uri) as tracking:
        mlflow_server.kill()
        tracking.start()
        wait_for(has_said_so)
        os.kill(tracking.process.pid, signal.SIGKILL)
    said.append(capfd.readouterr().err)
    assert "".join(said).count("isomax: ") == 1


def test_a_server_that_is_killed_and_comes_back(folder, mlflow_server, monkeypatch, capfd, passed):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_server.start()
    said = []

    def has_said_so():
        said.append(capfd.readouterr().err)
        return "isomax: cannot track to" in said[-1]

    def arrived():
        try:
            return len(history(mlflow_server.uri)[1]) == 3
        except ValueError:  # no run yet
            return False

    def samples():
        path = folder / "system.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    with LiveTracking(folder, mlflow_server.uri) as tracking:
        tracking.start()
        wait_for(arrived)
        mlflow_server.kill()
        write_epochs(folder, 4)
        wait_for(has_said_so)
        write_epochs(folder, 5)
        before = samples()
        wait_for(lambda: samples() > before)
    assert not tracking.complete
    said.append(capfd.readouterr().err)
    assert "".join(said).count("isomax: ") == 1
    assert f"'isomax track {folder}'" in "".join(said)

    mlflow_server.start()
    rows = [json.loads(line) for line in (folder / "system.jsonl").read_text().splitlines()]
    name = "system/cpu_utilization_percentage"
    there = [("train_loss", step) for step, _ in history(mlflow_server.uri)[1]]
    there += [(name, step) for step, _ in history(mlflow_server.uri, name)[1]]
    assert len(there) >= 3
    assert passed == []  # so far by the process only
    for _ in range(2):
        track(folder, mlflow_server.uri)
        run, metrics = history(mlflow_server.uri)
        assert metrics == epochs(5)
    assert len(passed) == len(set(passed))
    assert not set(passed) & set(there)
    assert run.info.status == "RUNNING"
    assert history(mlflow_server.uri, name)[1] == [(row["epoch"], row[name]) for row in rows]


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
    assert os.listdir() == ["out"]  # the current folder: no store of anybody's


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "[time.sleep(0.1) for _ in range(600) if not os.path.exists('out/tracking.json')]; "
        "sys.exit(247)",
    ],
    ids=["killed", "left"],
)
def test_a_run_that_is_killed_or_left_is_marked(folder, end):
    code = (
        "import os, signal, sys, time; from isomax_adapters.mlflow import LiveTracking\n"
        f"LiveTracking(sys.argv[1]).start(); {end}\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    run = subprocess.run(command, check=False, timeout=120, cwd=folder.parent)
    assert run.returncode % 256 == 247

    def status():
        try:
            return history(default_uri(folder))[0].info.status
        except ValueError:  # no run yet
            return None

    wait_for(lambda: status() == "KILLED")
    assert history(default_uri(folder))[1] == epochs(3)
