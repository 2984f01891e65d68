"""Which run the results go under, and which experiment they go into."""

import os
import shutil
import sys

import mlflow
import pytest

from isomax_adapters.mlflow import LiveTracking, TrackingError, track
from isomax_adapters.mlflow.tracking.places import default_uri

from .folders import finish


@pytest.fixture
def store(tmp_path, database, monkeypatch):
    """The user's MLflow, with an experiment of the user's."""
    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'users.db')}"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None


def tracked(client):
    """The run of the folder, wherever it is."""
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = [run for run in client.search_runs(ids) if "isomax.key" in run.data.tags]
    return run


def is_child(run, parent):
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.experiment_id == parent.info.experiment_id
    return True


@pytest.mark.parametrize("named", [True, False], ids=["by the environment", "as MLflow's default"])
def test_under_the_active_run(folder, store, named):
    finish(folder)
    if not named:  # MLflow finds it all the same, as the active run's
        os.environ.pop("MLFLOW_TRACKING_URI")
    mlflow.set_experiment("birds")
    with mlflow.start_run() as parent:
        mlflow.log_param("loss", "mine")
        track(folder)
        assert is_child(tracked(store), parent)
    track(folder, str(store.tracking_uri))  # later, it stays there
    run = tracked(store)
    assert is_child(run, parent)
    assert (run.info.status, run.data.params["loss"]) == ("FINISHED", "isomax")
    assert store.get_run(parent.info.run_id).data.params == {"loss": "mine"}


def test_children_of_a_comparison_stay_its_children(folder, store):
    child = folder / "runs" / "isomax-seed0"
    child.mkdir(parents=True)
    (child / "settings.json").write_text("{}")
    (folder / "settings.json").write_text('{"losses": ["isomax"]}')
    with mlflow.start_run(experiment_id=store.create_experiment("birds")) as outer:
        track(folder)
    runs = {run.info.run_name: run for run in store.search_runs([outer.info.experiment_id])}
    assert is_child(runs["out"], outer)
    assert is_child(runs["isomax-seed0"], runs["out"])
    assert len(runs) == 3


def test_while_it_is_being_filled(folder, store):
    with mlflow.start_run(experiment_id=store.create_experiment("birds")) as parent:
        with LiveTracking(folder) as tracking:
            tracking.start()
            finish(folder)
        assert tracking.complete
        assert is_child(tracked(store), parent)


def test_in_a_project(folder, store, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "MLproject").write_text(
        "name: birds\nentry_points:\n  main:\n    command: "
        f'"{sys.executable} -m isomax_evaluation track {folder}"\n'
    )
    done = mlflow.projects.run(str(project), experiment_name="birds", env_manager="local")
    parent = store.get_run(done.run_id)
    assert parent.info.status == "FINISHED"
    assert is_child(tracked(store), parent)


def test_an_open_run_that_is_elsewhere_is_none_of_this(folder, store):
    with mlflow.start_run():
        track(folder, default_uri(folder))
    run = tracked(mlflow.MlflowClient(tracking_uri=default_uri(folder)))
    assert "mlflow.parentRunId" not in run.data.tags


def test_a_run_that_is_not_there(folder, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    gone = store.create_run(store.create_experiment("birds"))
    store.delete_run(gone.info.run_id)
    for use in (track, LiveTracking):
        with pytest.raises(TrackingError, match=f"has no run {'0' * 32}.*; unset MLFLOW_RUN_ID"):
            use(folder)
    monkeypatch.setenv("MLFLOW_RUN_ID", gone.info.run_id)
    with pytest.raises(TrackingError, match=f"the run {gone.info.run_id} .* is deleted"):
        track(folder)


def test_the_experiment_of_a_number(folder, store, monkeypatch):
    number = store.create_experiment("birds")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    track(folder)
    assert tracked(store).info.experiment_id == number
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    (folder / "tracking.json").unlink()
    for use in (track, LiveTracking):
        with pytest.raises(TrackingError, match="has no experiment of MLFLOW_EXPERIMENT_ID, 77"):
            use(folder)


def test_a_deleted_experiment(folder, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    number = store.create_experiment("birds")
    store.delete_experiment(number)
    for use in (track, LiveTracking):
        with pytest.raises(TrackingError, match=f"restore --experiment-id {number}', or set"):
            use(folder)
    store.restore_experiment(number)
    track(folder)
    assert tracked(store).info.experiment_id == number
