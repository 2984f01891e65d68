import json
import shutil

import mlflow
import pytest

from .folders import write_epochs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where MLflow may put the database that it makes in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
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
