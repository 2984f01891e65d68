"""What each form of a tracking URI becomes, and that nothing lands elsewhere."""

import os
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from packaging.version import Version

from isomax_adapters.mlflow import LiveTracking, TrackingError, track
from isomax_adapters.mlflow.tracking.places import absolute, default_uri, uri_for

from .folders import write_epochs

HERE = "{here}"  # the current folder
SAME = None


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///./a/../mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///mlflow.db?timeout=5", "sqlite:///{here}/mlflow.db?timeout=5"),
        ("sqlite:////data/mlflow.db", SAME),
        ("sqlite+pysqlite:////data/what%3F/mlflow.db", SAME),
        ("sqlite:///file:/data/mlflow.db?uri=true", SAME),
        ("mlruns", "file://{here}/mlruns"),
        ("./my runs", "file://{here}/my%20runs"),
        ("what?/50%25", "file://{here}/what%3F/50%2525"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("file:///data/mlruns", SAME),
        ("file:///data/my%20runs/", "file:///data/my%20runs"),
        ("/data/mlruns", "file:///data/mlruns"),
        ("http://127.0.0.1:5000", SAME),
        ("https://me:secret@server/mlflow/", "https://me:secret@server/mlflow"),
        ("databricks", SAME),
        ("databricks://profile", SAME),
        ("postgresql://me:se%2Fcret@server:5432/mlflow", SAME),
        ("postgresql+psycopg://me@server/mlflow?sslmode=require", SAME),
        ("mysql+pymysql://me:secret@server/mlflow", SAME),
        ("mssql+pyodbc://me@server/mlflow", SAME),
    ],
)
def test_forms(given, becomes, tmp_path):
    expected = (becomes or given).replace(HERE, str(tmp_path))
    assert absolute(given) == expected
    assert absolute(expected) == expected


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5000", "localhost:5000", "server.lan:80/mlflow", "[::1]:5000"]
)
def test_an_address_without_a_scheme_is_refused(folder, address, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = sorted(Path.cwd().iterdir())
    for use in (track, LiveTracking):
        with pytest.raises(TrackingError, match=f"; write http://{address}".replace("[", r"\[")):
            use(folder, address)
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(folder, uri):
    with pytest.raises(TrackingError, match=f"^{uri} is a database in memory.*; give a file"):
        track(folder, uri)


@pytest.mark.parametrize("name", ["what?", "50%25", "50%", "a#b", "a b", "ü"])
def test_folders_of_any_name(folder, tmp_path, name):
    if "?" in name and Version(sqlalchemy.__version__) < Version("2.1"):
        pytest.skip("SQLAlchemy 2.0 reaches no file below such a folder")
    folder = folder.rename(tmp_path / name)
    (folder / "mlflow.db").unlink()
    before = sorted(tmp_path.iterdir())
    uri = track(folder)
    assert uri == default_uri(folder)
    assert sorted(tmp_path.iterdir()) == before
    assert {"mlflow.db", "mlartifacts"} <= set(os.listdir(folder))
    client = mlflow.MlflowClient(tracking_uri=uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids)
    artifacts = folder / "mlartifacts" / run.info.run_id / "artifacts"
    assert [path.name for path in artifacts.iterdir()] == ["settings.json"]
    write_epochs(folder, 5)
    assert track(folder) == uri
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 5


def test_a_relative_database_is_the_same_from_another_folder(folder, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    (folder / "mlflow.db").rename(first / "mlflow.db")
    monkeypatch.chdir(first)
    uri = track(folder, "sqlite:///mlflow.db")
    assert uri == f"sqlite:///{first / 'mlflow.db'}"
    monkeypatch.chdir(second)
    assert track(folder) == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # still set
    assert track(folder) == uri
    assert list(second.iterdir()) == []
    (second / "mlflow.db").touch()  # but one that is there is meant
    assert uri_for(folder) == f"sqlite:///{second / 'mlflow.db'}"
