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
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import is_databricks_uri

from isomax_adapters.mlflow.addresses import default_uri, refuse_moved, uri_for
from isomax_adapters.mlflow.errors import TrackingError, reason_of, shown
from isomax_adapters.mlflow.places import experiment_for, open_run

# MLflow's own retries go on for minutes. Here nothing is lost by giving up: the results are in the
# output folder, and sending them is tried again.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_MARK = "isomax.check"


def check(folder: str | Path, uri: str | None = None, register: str | None = None) -> None:
    """Try what tracking will do: read, write, upload, and register if that is wanted.

    :param folder: the output folder that is to be tracked; need not be there yet
    :param uri: as :func:`isomax_adapters.mlflow.track` takes it
    :param register: the name that a model is to be registered under
    :raises TrackingError: if something of that does not work
    """
    folder = Path(folder).resolve()
    uri = uri_for(folder, uri)
    if uri == default_uri(folder):
        refuse_moved(folder)
        return  # a file that is made when there is something to write
    server = f"MLflow at {shown(uri)}"
    with quiet(), patience():
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
            experiment = experiment_for(client, folder, uri, open_run(uri))
            client.set_experiment_tag(experiment.experiment_id, _MARK, "written")
        with _or_else(
            f"{server} does not know models as MLflow 3 does",
            "update the server to MLflow 3, or do not track (--no-track)",
        ):
            client.search_logged_models([experiment.experiment_id], max_results=1)
        place = experiment.artifact_location
        if not is_databricks_uri(uri):  # lets nothing be written beside the runs
            with _or_else(
                f"no files can be written to {shown(place)}, where {server} wants them",
                "start the server with --serve-artifacts, or install and set up here what that "
                "storage takes (such as boto3 for s3)",
            ):
                _upload(place, uri)
        if register:
            with _or_else(
                f"{server} does not let a model be registered as {register!r}",
                "set MLFLOW_REGISTRY_URI to a registry, choose another name, or leave --register "
                "out",
            ):
                make_registered(client, register)
                client.set_registered_model_tag(register, _MARK, "written")


@contextlib.contextmanager
def _or_else(what: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # of MLflow's, SQLAlchemy's, a storage's
        raise TrackingError(f"{what}: {reason_of(error)}", way_out) from error


def _upload(place: str, uri: str) -> None:
    """A small file, which stays: not all who may write may delete."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _MARK
        file.write_text("written", encoding="utf-8")
        get_artifact_repository(place, tracking_uri=uri).log_artifact(str(file))


def connect(uri: str) -> mlflow.MlflowClient:
    """A client.

    :raises sqlalchemy.exc.SQLAlchemyError: if the database does not answer
    """
    if urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
        # MLflow would try for an hour
        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    return mlflow.MlflowClient(tracking_uri=uri)


def make_registered(client: mlflow.MlflowClient, name: str) -> None:
    """A registered model of a name, unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


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
def patience(uploads: bool = False) -> Iterator[None]:
    """With few retries and, but for uploads, short timeouts, unless the user has set others."""
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    if uploads:
        added.pop("MLFLOW_HTTP_REQUEST_TIMEOUT", None)  # large files take their time
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without MLflow's, Alembic's and urllib3's chatter on the terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
