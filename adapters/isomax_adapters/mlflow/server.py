"""Which tracking server, and whether it answers."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

# MLflow's own retries go on for minutes. Here nothing is lost by giving up: the results are in the
# output folder, and sending them is tried again.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}

# ImportError: no driver for the database
FAILURES = (MlflowException, SQLAlchemyError, OSError, ImportError)


class TrackingError(RuntimeError):
    """The tracking server cannot be used; the results are safe in the output folder."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.reason = reason


def uri_for(folder: Path, uri: str | None = None) -> str:
    """The tracking URI of an output folder: the given one, else ``MLFLOW_TRACKING_URI``, else an
    SQLite file in the folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder)


def default_uri(folder: Path) -> str:
    """An SQLite file in the folder."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def check(folder: str | Path, uri: str | None = None) -> None:
    """Ask the tracking server for a sign of life.

    :param folder: the output folder that is to be tracked; need not be there yet
    :param uri: as :func:`isomax_adapters.mlflow.track` takes it
    :raises TrackingError: if it gives none
    """
    folder = Path(folder)
    uri = uri_for(folder, uri)
    if uri == default_uri(folder):
        return  # a file that is made when there is something to write
    try:
        with quiet(), patience():
            connect(uri).search_experiments(max_results=1)
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {shown(uri)} does not answer: {reason_of(error)}",
            "start the server, set MLFLOW_TRACKING_URI to another, go on without it and send the "
            "results later (--offline-ok), or do not track (--no-track)",
        ) from error


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


def shown(uri: str) -> str:
    """The URI without a password."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@", 1) if password else uri


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    deepest = error
    while deepest.__cause__ or deepest.__context__:
        deepest = deepest.__cause__ or deepest.__context__  # type: ignore[assignment]
    if isinstance(deepest, OSError) and deepest.strerror:
        return deepest.strerror  # "Connection refused", below layers of wrapping
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
def patience() -> Iterator[None]:
    """With short timeouts and few retries, unless the user has set others."""
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
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
