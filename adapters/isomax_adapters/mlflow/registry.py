"""The exported model of a run: logged to it, and registered if that was asked for."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_name

from isomax_adapters.mlflow.flavor import log_model
from isomax_adapters.mlflow.server import TrackingError, as_current

MODEL, NAME = "model.onnx", "model"
ALIAS = "candidate"
REGISTER = "register.json"


def check_name(name: str) -> None:
    """Refuse what no registered model can be called.

    :raises TrackingError: if the name is one of those
    """
    try:
        _validate_model_name(name)
    except MlflowException as error:
        raise TrackingError(f"no model can be registered as {name!r}", error.message) from error
    # can be made, but neither be searched for, nor be in a models:/ URI or in PostgreSQL
    if len(name) > 256 or re.search(r"[?'\"`\x00-\x1f]", name):
        raise TrackingError(
            f"no model can be registered as {name!r}",
            "choose a name of at most 256 characters, without quotation marks and question marks",
        )


def ask_to_register(folder: str | Path, name: str) -> None:
    """Let :func:`isomax_adapters.mlflow.track` register the model of an output folder.

    :param folder: the output folder
    :param name: of the registered model
    """
    (Path(folder) / REGISTER).write_text(json.dumps({"name": name}))


def check_registered(folder: Path) -> None:
    """Find that nothing is left to register, once the work is finished and has been sent.

    :raises TrackingError: if there is no model where one was to be registered
    """
    if (folder / REGISTER).is_file() and not (folder / MODEL).is_file():
        name = json.loads((folder / REGISTER).read_text())["name"]
        raise TrackingError(
            f"no model was registered as {name!r}, as {folder} holds no {MODEL}",
            "run the same 'isomax train' command again to write it",
        )


def send_model(
    client: mlflow.MlflowClient,
    uri: str,
    folder: Path,
    run_id: str,
    metrics: dict[str, float],
    state: dict[str, Any],
    remember: Callable[..., None],
) -> None:
    """Log the folder's ONNX file to its run, and register it under the alias ``candidate``; once.

    :param metrics: of the run, put on the model and as tags on its version
    :param state: what is known to be there
    :param remember: called with what has changed in it
    """
    if not (folder / MODEL).is_file():
        return
    if "model_id" not in state:
        remember(model_id=_log(client, uri, folder / MODEL, run_id))
    if not (folder / REGISTER).is_file():
        return
    name = json.loads((folder / REGISTER).read_text())["name"]
    if name in state.get("versions", {}):
        return
    version = _version(client, name, run_id)
    if version is None:
        with as_current(uri):
            version = _register(client, name, run_id, state["model_id"], metrics)
    client.set_registered_model_alias(name, ALIAS, version)
    remember(versions={**state.get("versions", {}), name: version})


def _log(client: mlflow.MlflowClient, uri: str, path: Path, run_id: str) -> str:
    """The id of the run's logged model, which may be there, in part or whole."""
    run = client.get_run(run_id)
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    models = [model for model in found if model.name == NAME]
    # made here, as MLflow's log_model would choose another experiment
    model = (
        models[0]
        if models
        else client.create_logged_model(
            run.info.experiment_id, name=NAME, source_run_id=run_id, params=run.data.params
        )
    )
    if model.status != LoggedModelStatus.READY:
        with as_current(uri):
            log_model(path, run_id=run_id, model_id=model.model_id)
    return str(model.model_id)


def _version(client: mlflow.MlflowClient, name: str, run_id: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _register(
    client: mlflow.MlflowClient, name: str, run_id: str, model_id: str, metrics: dict[str, float]
) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={key: f"{value:.6g}" for key, value in metrics.items()},
        model_id=model_id,
    )
    return str(version.version)
