"""Mirroring an output folder into MLflow, with folders made by hand."""

import json

import mlflow
import pytest

from isomax_adapters.mlflow import TrackingError, track, ui_command


@pytest.fixture
def folder(tmp_path):
    """A finished run of three epochs."""
    (tmp_path / "settings.json").write_text(json.dumps({"loss": "isomax", "recipe": {"lr": 0.1}}))
    write_epochs(tmp_path, 3)
    return tmp_path


def write_epochs(folder, count):
    rows = [{"epoch": e + 1, "time": 1e9 + e, "train_loss": 1 / (e + 1)} for e in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def history(folder):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'isomax'")
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = client.get_metric_history(run.info.run_id, "train_loss")
    return run, [(metric.step, metric.value) for metric in metrics]


def test_what_is_missing_is_sent_once(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = track(folder)
    assert ui_command(uri) == f"mlflow ui --backend-store-uri {uri}"
    run, metrics = history(folder)
    assert run.data.params == {"loss": "isomax", "recipe.lr": "0.1"}
    assert [step for step, _ in metrics] == [1, 2, 3]
    write_epochs(folder, 5)
    track(folder)
    assert history(folder)[1] == [(e + 1, 1 / (e + 1)) for e in range(5)]
    # the mirror's own memory set back, as by a kill between sending and writing down
    state = json.loads((folder / "tracking.json").read_text())
    (folder / "tracking.json").write_text(json.dumps(state | {"steps": 2}))
    track(folder)
    assert history(folder)[1] == [(e + 1, 1 / (e + 1)) for e in range(5)]


def test_a_server_that_is_not_there_costs_nothing(folder, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"cannot track to http.*send them later with"):
        track(folder, f"http://127.0.0.1:{free_port}")
    assert not (folder / "tracking.json").exists()
    track(folder)
    assert len(history(folder)[1]) == 3


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(TrackingError, match="no output folder of isomax"):
        track(tmp_path)
