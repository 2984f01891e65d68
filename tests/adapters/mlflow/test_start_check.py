"""What does not work at the end is said at the start, with a way out that works."""

import json
import shutil
import time

import mlflow
import pytest

from isomax_adapters.mlflow import LiveTracking, TrackingError, track
from isomax_adapters.mlflow.tracking import server
from isomax_adapters.mlflow.tracking.server import check

from .folders import finish
from .servers import in_front_of, tracking_server

HTML = b"<!doctype html>\n<title>404 Not Found</title>\n<h1>Not Found</h1>"
DENIED = json.dumps({"error_code": "PERMISSION_DENIED", "message": "Permission denied"}).encode()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory, database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "server.db")
    process = tracking_server(folder)
    yield process.start()
    process.kill()


def refuses(part, status, body, reads=True):
    def answers(method, path):
        asked = part in path and (reads or not ("/search" in path or method == "GET"))
        return (status, body) if asked else None

    return answers


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            refuses("/logged-models", 404, HTML),
            "does not know models as MLflow 3 does: .* error code 404 != 200; update the server",
        ),
        (
            refuses("/mlflow/", 403, DENIED, reads=False),
            "does not let experiments be written: .*Permission denied; ask for the permission",
        ),
        (
            refuses("/mlflow-artifacts/", 503, b"Artifacts are not served"),
            "no files can be written to mlflow-artifacts:/.*503.*; start the server with --serve",
        ),
        (
            refuses("/registered-models/create", 404, HTML),
            "does not let a model be registered as 'birds': .*404.*; set MLFLOW_REGISTRY_URI",
        ),
        (
            refuses("/registered-models/set-tag", 403, DENIED),
            "does not let a model be registered as 'birds': .*Permission denied; ",
        ),
    ],
    ids=["of MLflow 2", "read only", "no artifacts", "no registry", "another's model"],
)
def test_it_is_said_at_the_start(folder, mlflow_server, answers, said):
    with (
        in_front_of(mlflow_server, answers) as uri,
        pytest.raises(TrackingError, match=said) as e,
    ):
        LiveTracking(folder, uri, register="birds")
    assert f"MLflow at {uri} " in str(e.value)
    assert "\n" not in str(e.value)
    assert "<" not in str(e.value)


def test_what_works_is_tracked(folder, mlflow_server):
    for _ in range(2):  # the second time it is all there
        check(folder, mlflow_server.uri, "birds")
    client = mlflow.MlflowClient(tracking_uri=mlflow_server.uri)
    experiment = client.get_experiment_by_name("isomax")
    assert client.search_runs([experiment.experiment_id]) == []
    assert client.search_model_versions("name = 'birds'") == []
    track(folder, mlflow_server.uri)
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_local_stores(folder, database, tmp_path, monkeypatch, store):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if store == "sqlite":
        uri = f"sqlite:///{shutil.copy(database, tmp_path / 'users.db')}"
    else:
        uri = (tmp_path / "runs").as_uri()
    check(folder, uri, "birds")
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert client.get_registered_model("birds").name == "birds"
    place = tmp_path / "none"
    place.write_text("a file, and no folder")
    client.create_experiment("elsewhere", artifact_location=(place / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    with pytest.raises(TrackingError, match=f"no files can be written to .*{place}.* directory; "):
        check(folder, uri)


def test_uploads_may_take_longer_than_answers(folder, mlflow_server, monkeypatch):
    monkeypatch.setitem(server._PATIENCE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    waited = []

    def slowly(method, path):
        if method == "PUT":
            waited.append(path)
            time.sleep(3)

    finish(folder)
    with in_front_of(mlflow_server, slowly) as uri:
        track(folder, uri)
    assert len(waited) == 3
