"""Which tracking server, and whether it answers."""

import contextlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import sqlalchemy

STATE = "tracking.json"
OWN = ""  # stands there for the SQLite file in the folder
_HIDDEN = "***"
_GIVE_UP = 20.0  # seconds of failing: a server that refuses takes less, one that hangs more

# MLflow's own retries go on for minutes. Here nothing is lost by giving up: the results are in the
# output folder, and sending them is tried again.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class TrackingError(RuntimeError):
    """The tracking server cannot be used; the results are safe in the output folder."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.reason = reason


class Failures:
    """What went wrong; the rest is sent all the same."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.seconds = 0.0

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self.errors.append(error)
            self.seconds += time.monotonic() - started
            if self.seconds > _GIVE_UP:
                raise

    def __str__(self) -> str:
        reasons = list(dict.fromkeys(map(reason_of, self.errors)))
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        return "; ".join(reasons[:3]) + more


def uri_for(folder: Path, uri: str | None = None) -> str:
    """The tracking URI of an output folder: the given one, else ``MLFLOW_TRACKING_URI``, else the
    one that it was last tracked to, else an SQLite file in the folder.

    :raises TrackingError: if the one it was last tracked to had a password, which is not stored
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        uri = next(reversed(read_state(folder)), OWN) or default_uri(folder)
        if _HIDDEN in uri:
            raise TrackingError(
                f"{folder} was last tracked to {uri}, and passwords are not stored",
                "set MLFLOW_TRACKING_URI to the whole address",
            )
    return uri.rstrip("/")


def default_uri(folder: Path) -> str:
    """An SQLite file in the folder."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def read_state(folder: Path) -> dict[str, Any]:
    """What each server is known to have, by its URI without a password; the last used is last."""
    try:
        found = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):  # none, or damaged: the servers know
        return {}
    whole = isinstance(found, dict) and all(isinstance(state, dict) for state in found.values())
    return found if whole else {}


def refuse_moved(folder: Path) -> None:
    """MLflow knows artifacts by their absolute paths, so its SQLite file cannot be moved.

    :raises TrackingError: if the folder has been, since it was tracked to its own SQLite file
    """
    before = read_state(folder).get(OWN, {}).get("folder", str(folder))
    if before != str(folder):
        raise TrackingError(
            f"{folder} was tracked as {before}, and its mlflow.db knows its files by that name",
            "move it back, set MLFLOW_TRACKING_URI to a server, or delete mlflow.db, mlartifacts "
            f"and {STATE} in it to start over",
        )


def check(folder: str | Path, uri: str | None = None) -> None:
    """Ask the tracking server for a sign of life.

    :param folder: the output folder that is to be tracked; need not be there yet
    :param uri: as :func:`isomax_adapters.mlflow.track` takes it
    :raises TrackingError: if it gives none
    """
    folder = Path(folder).resolve()
    uri = uri_for(folder, uri)
    if uri == default_uri(folder):
        refuse_moved(folder)
        return  # a file that is made when there is something to write
    try:
        with quiet(), patience():
            connect(uri).search_experiments(max_results=1)
    except Exception as error:  # of MLflow's, SQLAlchemy's, a database driver's
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


def shown(text: str) -> str:
    """A URI, or a text with URIs, without passwords."""
    return re.sub(r"(://[^\s/:@]*):\S*@", rf"\1:{_HIDDEN}@", text)


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    deepest = error
    while deepest.__cause__ or deepest.__context__:
        deepest = deepest.__cause__ or deepest.__context__  # type: ignore[assignment]
    if isinstance(deepest, OSError) and deepest.strerror:
        # "Connection refused", below layers of wrapping
        file = f"{deepest.filename}: " if deepest.filename else ""
        return f"{file}{deepest.strerror}"
    if isinstance(deepest, TimeoutError):
        return "timed out"
    lines = str(error).strip().splitlines()
    return shown(lines[0].rstrip(".")) if lines else type(error).__name__


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
