"""Where an output folder is tracked to: absolute, escaped, and remembered without passwords."""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import make_url

from isomax_adapters.mlflow.errors import HIDDEN, TrackingError

STATE = "tracking.json"
OWN = ""  # stands there for the SQLite file in the folder
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?")


def uri_for(folder: Path, uri: str | None = None) -> str:
    """The tracking URI of an output folder: the given one, else ``MLFLOW_TRACKING_URI``, else where
    a run is open, else the one that it was last tracked to, else an SQLite file in the folder.

    :return: the same from any current folder
    :raises TrackingError: if there can be no such URI, or the one that the folder was last tracked
        to had a password, which is not stored
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and (mlflow.active_run() or os.environ.get("MLFLOW_RUN_ID")):
        uri = mlflow.get_tracking_uri()  # where that run is
    remembered = read_state(folder)
    if uri:
        return _known(uri, list(remembered)) or absolute(uri)
    uri = next(reversed(remembered), OWN) or default_uri(folder)
    if HIDDEN in uri:
        raise TrackingError(
            f"{folder} was last tracked to {uri}, and passwords are not stored",
            "set MLFLOW_TRACKING_URI to the whole address",
        )
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise TrackingError(
            f"no database of MLflow's can lie in {str(folder)!r}, whose name is not UTF-8",
            "rename the folder, or set MLFLOW_TRACKING_URI to another place",
        ) from error
    return absolute(uri)


def default_uri(folder: Path) -> str:
    """An SQLite file in the folder."""
    return sqlite_uri(folder.resolve() / "mlflow.db")


def sqlite_uri(path: Path, query: str = "") -> str:
    """The URI of an SQLite file, whatever it is called."""
    database = make_url(f"sqlite:///{path}").database
    if database == str(path):
        return f"sqlite:///{path}{query}"
    escaped = str(path).replace("%", "%25").replace("?", "%3F")
    # with the name of its driver, as MLflow would make a folder of the escaped name
    return f"sqlite+pysqlite:///{escaped}{query}"


def absolute(uri: str) -> str:
    """A tracking URI as MLflow takes it, the same from any current folder.

    :raises TrackingError: if it is an address without ``http://``, or a database in memory
    """
    scheme = urlsplit(uri).scheme
    if scheme.partition("+")[0] == "sqlite":
        return _absolute_sqlite(uri)
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if uri == "databricks" or ("://" in uri and scheme != "file"):
        return uri
    if _HOST_AND_PORT.fullmatch(uri) and not Path(uri).exists():
        raise TrackingError(
            f"the tracking URI {uri} does not say how to talk to the server",
            f"write http://{uri} or https://{uri}",
        )
    if scheme in ("", "file") or len(scheme) == 1:  # a drive of Windows'
        path = local_file_uri_to_path(uri) if scheme == "file" else uri
        return Path(path).absolute().as_uri()
    return uri


def _absolute_sqlite(uri: str) -> str:
    url = make_url(uri)
    if not url.database or url.database == ":memory:":
        raise TrackingError(
            f"{uri} is a database in memory, which ends with its process",
            f"give a file, such as {sqlite_uri(Path('mlflow.db').absolute())}",
        )
    if url.database.startswith("file:") or Path(url.database).is_absolute():
        return uri  # the first is SQLite's own notation
    _, mark, query = uri.partition("?")
    return sqlite_uri(Path(os.path.abspath(url.database)), mark + query)


def _known(uri: str, remembered: list[str]) -> str | None:
    """The database that a relative URI meant before, if there is none where it points to now."""
    if urlsplit(uri).scheme != "sqlite" or not (database := make_url(uri).database):
        return None
    if Path(database).exists():
        return None
    tail = f"/{os.path.normpath(database)}"
    files = [known for known in remembered if known.startswith("sqlite")]
    return next((f for f in reversed(files) if f"/{make_url(f).database}".endswith(tail)), None)


def read_state(folder: Path) -> dict[str, Any]:
    """What each server is known to have, by its URI without a password; the last used is last."""
    try:
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged: the servers know
        return {}
    whole = isinstance(found, dict) and all(isinstance(state, dict) for state in found.values())
    return found if whole else {}


def read_states(output: Path) -> dict[Path, dict[str, Any]]:
    """The same of an output folder and of each run in it."""
    return {path.parent: read_state(path.parent) for path in output.rglob(STATE)}


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
