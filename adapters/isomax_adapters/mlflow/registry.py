"""The exported model of a run: logged to it, and registered if that was asked for."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.validation import _validate_model_name

from isomax_adapters.mlflow.errors import TrackingError
from isomax_adapters.mlflow.flavor import save_model
from isomax_adapters.mlflow.server import as_current, make_registered

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
    if len(name) > 256 or re.search(r"[/?'\"`\x00-\x1f]", name):
        raise TrackingError(
            f"no model can be registered as {name!r}",
            "choose a name of at most 256 characters, without slash, quotation or question marks",
        )


def ask_to_register(folder: str | Path, name: str) -> None:
    """Let :func:`isomax_adapters.mlflow.track` register the model of an output folder.

    :param folder: the output folder
    :param name: of the registered model
    """
    (Path(folder) / REGISTER).write_text(json.dumps({"name": name}), encoding="utf-8")


def check_registered(folder: Path) -> None:
    """Find that nothing is left to register, once the work is finished and has been sent.

    :raises TrackingError: if there is no model where one was to be registered
    """
    if (folder / REGISTER).is_file() and not (folder / MODEL).is_file():
        name = json.loads((folder / REGISTER).read_text(encoding="utf-8"))["name"]
        raise TrackingError(
            f"no model was registered as {name!r}, as {folder} holds no {MODEL}",
            "run the same 'isomax train' command again to write it",
        )


def send_model(
    client: mlflow.MlflowClient,
    uri: str,
    folder: Path,
    run_id: str,
    params: dict[str, str],
    metrics: dict[str, float],
    state: dict[str, Any],
    remember: Callable[..., None],
) -> None:
    """Log the folder's ONNX file to its run, and register it under the alias ``candidate``; once.

    :param params: of the run, put on the model
    :param metrics: of the run, put on the model's version as tags
    :param state: what is known to be there
    :param remember: called with what has changed in it
    """
    if not (folder / MODEL).is_file():
        return
    model_id = state.get("model_id") or _log(client, folder / MODEL, run_id, params)
    if "results" in state:  # else the model lacks them, and gets them another time
        remember(model_id=model_id)
    if not (folder / REGISTER).is_file():
        return
    name = json.loads((folder / REGISTER).read_text(encoding="utf-8"))["name"]
    if name in state.get("versions", {}):
        return
    version = _version(client, name, run_id)
    if version is None:
        with as_current(uri):
            version = _register(client, name, run_id, model_id, metrics)
    client.set_registered_model_alias(name, ALIAS, version)
    remember(versions={**state.get("versions", {}), name: version})


def _log(client: mlflow.MlflowClient, path: Path, run_id: str, params: dict[str, str]) -> str:
    """The id of the run's logged model, of which any part may be there already.

    Not by MLflow's ``log_model``, which chooses another experiment, and fails where it was cut off
    before, as it says a second time that the model is an output of the run.
    """
    run = client.get_run(run_id)
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    model = next(
        (model for model in found if model.name == NAME), None
    ) or client.create_logged_model(
        run.info.experiment_id, name=NAME, source_run_id=run_id, params=params
    )
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    there = {metric.key for metric in model.metrics or ()}
    metrics = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id)
        for m in run.data._metric_objs
        if m.step == 0 and m.key not in there
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as place:
            content = Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            )
            save_model(path, Path(place) / NAME, mlflow_model=content)
            client.log_model_artifacts(model.model_id, str(Path(place) / NAME))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _version(client: mlflow.MlflowClient, name: str, run_id: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _register(
    client: mlflow.MlflowClient, name: str, run_id: str, model_id: str, metrics: dict[str, float]
) -> str:
    make_registered(client, name)
    version = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={key: f"{value:.6g}" for key, value in metrics.items()},
        model_id=model_id,
    )
    return str(version.version)
