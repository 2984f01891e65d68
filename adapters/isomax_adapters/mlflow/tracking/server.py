"""Which tracking server, and whether it answers."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import is_databricks_uri

from isomax_adapters.mlflow.tracking import places
from isomax_adapters.mlflow.tracking.errors import TrackingError, reason_of, shown

# MLflow's own retries go on for minutes. Here nothing is lost by giving up: the results are in the
# output folder, and sending them is tried again.
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {_TIMEOUT: "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_MARK = "isomax.check"


def check(folder: Path, uri: str, register: str | None = None) -> None:
    """Try what tracking will do, and register if a name is given; raise what does not work."""
    if uri == places.default_uri(folder):
        return  # a file that is made when there is something to write
    server = f"MLflow at {shown(uri)}"
    with talking():
        with _or_else(
            f"{server} does not answer",
            "start the server, set MLFLOW_TRACKING_URI to another, go on without it and send the "
            "results later (--offline-ok), or do not track (--no-track)",
        ):
            client = connect(uri)
            client.search_experiments(max_results=1)
        with _or_else(
            f"{server} does not let experiments be written",
            "ask for the permission, or set MLFLOW_EXPERIMENT_NAME to an experiment that you may "
            "write to",
        ):
            experiment = places.experiment_for(client, folder, uri, places.open_run(uri))
            client.set_experiment_tag(experiment.experiment_id, _MARK, "written")
        with _or_else(
            f"{server} does not know models as MLflow 3 does",
            "update the server to MLflow 3, or do not track (--no-track)",
        ):
            client.search_logged_models([experiment.experiment_id], max_results=1)
        place = experiment.artifact_location
        if not is_databricks_uri(uri):  # lets nothing be written beside the runs
            with (
                _or_else(
                    f"no files can be written to {shown(place)}, where {server} wants them",
                    "start the server with --serve-artifacts, or install and set up here what that "
                    "storage takes (such as boto3 for s3)",
                ),
                tempfile.TemporaryDirectory() as here,
            ):
                # it stays: not all who may write may delete
                (Path(here) / _MARK).write_text("written", encoding="utf-8")
                repository = get_artifact_repository(place, tracking_uri=uri)
                repository.log_artifact(str(Path(here) / _MARK))
        if register:
            with _or_else(
                f"{server} does not let a model be registered as {register!r}",
                "set MLFLOW_REGISTRY_URI to a registry, choose another name, or leave --register "
                "out",
            ):
                places.unless(places.THERE, client.create_registered_model, register)
                client.set_registered_model_tag(register, _MARK, "written")


@contextlib.contextmanager
def _or_else(what: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # of MLflow's, SQLAlchemy's, a storage's
        raise TrackingError(f"{what}: {reason_of(error)}", way_out) from error


def connect(uri: str) -> mlflow.MlflowClient:
    """A client, of a database that answers."""
    if urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
        engine = sqlalchemy.create_engine(uri)  # MLflow would try for an hour
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    return mlflow.MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def as_current(uri: str) -> Iterator[None]:
    """With MLflow's current tracking URI set to this one: not all of MLflow asks the client."""
    before = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow's setter sets it too
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def talking(uploads: bool = False) -> Iterator[None]:
    """To MLflow with few retries and, but for uploads, short timeouts, unless the user has set
    others; without its, Alembic's and urllib3's chatter on the terminal.
    """
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    if uploads:
        added.pop(_TIMEOUT, None)  # large files take their time
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    os.environ.update(added)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name in added:
            del os.environ[name]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
