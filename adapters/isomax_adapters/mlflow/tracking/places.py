"""Where an output folder is tracked to: server, experiment, and the run that its runs go under.

What each server is known to have is noted in the folder, under its URI without a password.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import make_url

from isomax_adapters.mlflow.tracking.errors import HIDDEN, TrackingError, shown

STATE = "tracking.json"
OWN = ""  # stands there for the SQLite file in the folder
EXPERIMENT = "isomax"
MISSING, THERE = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?")


def uri_for(folder: Path, uri: str | None = None) -> str:
    """The tracking URI of an output folder: the given one, else ``MLFLOW_TRACKING_URI``, else where
    a run is open, else the one that it was last tracked to, else an SQLite file in the folder.

    :raises TrackingError: if that cannot be used: there is no such URI, it had a password, which is
        not stored, or the folder was moved from where its SQLite file knows it
    """
    remembered = read_state(folder)
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and (mlflow.active_run() or os.environ.get("MLFLOW_RUN_ID")):
        uri = mlflow.get_tracking_uri()  # where that run is
    own = default_uri(folder)
    if uri:
        uri = _known(uri, list(remembered)) or absolute(uri)
    else:
        uri = next(reversed(remembered), OWN) or own
    if HIDDEN in uri:
        raise TrackingError(
            f"{folder} was last tracked to {uri}, and passwords are not stored",
            "set MLFLOW_TRACKING_URI to the whole address",
        )
    if uri != own:
        return uri
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise TrackingError(
            f"no database of MLflow's can lie in {str(folder)!r}, whose name is not UTF-8",
            "rename the folder, or set MLFLOW_TRACKING_URI to another place",
        ) from error
    before = remembered.get(OWN, {}).get("folder", str(folder))
    if before != str(folder):  # MLflow knows artifacts by their absolute paths
        raise TrackingError(
            f"{folder} was tracked as {before}, and its mlflow.db knows its files by that name",
            "move it back, set MLFLOW_TRACKING_URI to a server, or delete mlflow.db, mlartifacts "
            f"and {STATE} in it to start over",
        )
    return uri


def default_uri(folder: Path) -> str:
    """An SQLite file in the folder."""
    return _sqlite_uri(folder.resolve() / "mlflow.db")


def absolute(uri: str) -> str:
    """A tracking URI as MLflow takes it, the same from any current folder; raises if none is."""
    scheme = urlsplit(uri).scheme
    if scheme.partition("+")[0] == "sqlite":
        file = make_url(uri).database
        if not file or file == ":memory:":
            raise TrackingError(
                f"{uri} is a database in memory, which ends with its process",
                f"give a file, such as {_sqlite_uri(Path('mlflow.db').absolute())}",
            )
        if file.startswith("file:") or Path(file).is_absolute():
            return uri  # the first is SQLite's own notation
        _, mark, query = uri.partition("?")
        return _sqlite_uri(Path(os.path.abspath(file)), mark + query)
    if uri == "databricks" or ("://" in uri and scheme != "file"):
        return uri.rstrip("/")
    if _HOST_AND_PORT.fullmatch(uri) and not Path(uri).exists():
        raise TrackingError(
            f"the tracking URI {uri} does not say how to talk to the server",
            f"write http://{uri} or https://{uri}",
        )
    if scheme in ("", "file") or len(scheme) == 1:  # a drive of Windows'
        path = local_file_uri_to_path(uri) if scheme == "file" else uri
        return Path(path).absolute().as_uri()
    return uri


def _sqlite_uri(path: Path, query: str = "") -> str:
    """Of a file, whatever it is called."""
    if make_url(f"sqlite:///{path}").database == str(path):
        return f"sqlite:///{path}{query}"
    escaped = str(path).replace("%", "%25").replace("?", "%3F")
    # with the name of its driver, as MLflow would make a folder of the escaped name
    return f"sqlite+pysqlite:///{escaped}{query}"


def _known(uri: str, remembered: list[str]) -> str | None:
    """The database that a relative URI meant before, if there is none where it points to now."""
    file = make_url(uri).database if urlsplit(uri).scheme == "sqlite" else None
    if not file or Path(file).exists():
        return None
    tail = f"/{os.path.normpath(file)}"
    files = [known for known in reversed(remembered) if known.startswith("sqlite")]
    return next((known for known in files if f"/{make_url(known).database}".endswith(tail)), None)


def read_state(folder: Path) -> dict[str, Any]:
    """What each server is known to have; the last used is last."""
    try:
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return {server: dict(state) for server, state in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # none, or damaged: the servers know
        return {}


def read_states(output: Path) -> dict[Path, dict[str, Any]]:
    """The same of an output folder and of each run in it."""
    return {path.parent: read_state(path.parent) for path in output.rglob(STATE)}


def write_state(folder: Path, states: dict[str, Any]) -> None:
    """At once, or not at all."""
    partial = folder / f".{STATE}.partial"
    partial.write_text(json.dumps(states, indent=1), encoding="utf-8")
    partial.replace(folder / STATE)


def open_run(uri: str) -> str | None:
    """The id of the run that is open there: the active one, or the one of ``MLFLOW_RUN_ID``."""
    active = mlflow.active_run()
    run_id = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
    return run_id if run_id and absolute(mlflow.get_tracking_uri()) == uri else None


def experiment_for(
    client: mlflow.MlflowClient, output: Path, uri: str, within: str | None
) -> Experiment:
    """That of the run that is given, else the one that the environment names, else ours; raises if
    that is deleted or not there.
    """
    server = f"MLflow at {shown(uri)}"
    if within is not None:
        way_out = "unset MLFLOW_RUN_ID, or set it to a run that is there"
        if (run := unless(MISSING, client.get_run, within)) is None:
            raise TrackingError(f"{server} has no run {within}", way_out)
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(f"the run {within} of {server} is deleted", way_out)
        return client.get_experiment(run.info.experiment_id)
    own = uri == default_uri(output)
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if number and "MLFLOW_EXPERIMENT_NAME" not in os.environ and not own:
        if (experiment := unless(MISSING, client.get_experiment, number)) is None:
            raise TrackingError(
                f"{server} has no experiment of MLFLOW_EXPERIMENT_ID, {number}",
                "unset it, or set it to one that is there ('mlflow experiments search')",
            )
    elif (experiment := client.get_experiment_by_name(name)) is None:
        # a server keeps artifacts where it was told to; SQLite's lie beside it
        place = (output / "mlartifacts").as_uri() if own else None
        unless(THERE, client.create_experiment, name, place)
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"the experiment {experiment.name!r} of {server} is deleted",
            "restore it with 'mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}', or set MLFLOW_EXPERIMENT_NAME to another",
        )
    return experiment


def unless(code: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What MLflow answers; nothing if it refuses with that code."""
    try:
        return call(*args, **options)
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None
