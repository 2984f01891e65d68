import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where MLflow may put the database that it makes in the current folder."""
    monkeypatch.chdir(tmp_path)
