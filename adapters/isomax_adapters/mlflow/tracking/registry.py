"""The exported model of a run: logged to it, and registered if that was asked for."""

import json
import re
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.validation import _validate_model_name

from isomax_adapters.mlflow.flavor.model import save_model
from isomax_adapters.mlflow.tracking.errors import TrackingError
from isomax_adapters.mlflow.tracking.places import THERE, unless
from isomax_adapters.mlflow.tracking.server import as_current

MODEL, NAME = "model.onnx", "model"
ALIAS = "candidate"
REGISTER = "register.json"
Metrics = list[Metric]


def check_name(name: str) -> None:
    """Refuse what no registered model can be called.

    :raises TrackingError: if the name is one of those
    """
    way_out = "choose a name of at most 256 characters, without slash, quotation or question marks"
    # some can be made, but neither be searched for, nor be in a models:/ URI or in PostgreSQL
    wrong = len(name) > 256 or re.search(r"[/?'\"`\x00-\x1f]", name)
    try:
        _validate_model_name(name)
    except MlflowException as error:
        wrong, way_out = True, error.message
    if wrong:
        raise TrackingError(f"no model can be registered as {name!r}", way_out)


def ask_to_register(folder: str | Path, name: str) -> None:
    """Let :func:`isomax_adapters.mlflow.track` register the model of an output folder."""
    (Path(folder) / REGISTER).write_text(json.dumps({"name": name}), encoding="utf-8")


def asked_name(folder: Path) -> str | None:
    """What the model of an output folder is to be registered as, if it is."""
    path = folder / REGISTER
    return json.loads(path.read_text(encoding="utf-8"))["name"] if path.is_file() else None


def check_registered(folder: Path) -> None:
    """Raise if there is no model to register, once the work is finished and has been sent."""
    if (name := asked_name(folder)) is not None and not (folder / MODEL).is_file():
        raise TrackingError(
            f"no model was registered as {name!r}, as {folder} holds no {MODEL}",
            "run the same 'isomax train' command again to write it",
        )


def log(
    client: mlflow.MlflowClient, path: Path, run_id: str, params: dict[str, str], results: Metrics
) -> str:
    """The id of the run's logged model, of which any part may be there already.

    Not by MLflow's ``log_model``, which chooses another experiment, and fails where it was cut off
    before, as it says a second time that the model is an output of the run.
    """
    run = client.get_run(run_id)
    place = run.info.experiment_id
    found = client.search_logged_models([place], f"source_run_id = '{run_id}'")
    model = next((model for model in found if model.name == NAME), None)
    if model is None:
        model = client.create_logged_model(place, NAME, source_run_id=run_id, params=params)
    model_id = str(model.model_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    there = {metric.key for metric in model.metrics or ()}
    metrics = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run_id)
        for m in results
        if m.key not in there
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)
    if model.status != LoggedModelStatus.READY:
        location = model.artifact_location
        described = Model(location, run_id, model_uuid=model_id, model_id=model_id)
        with tempfile.TemporaryDirectory() as folder:
            save_model(path, Path(folder) / NAME, mlflow_model=described)
            client.log_model_artifacts(model_id, str(Path(folder) / NAME))
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def register(
    client: mlflow.MlflowClient, uri: str, name: str, run_id: str, model_id: str, results: Metrics
) -> None:
    """A version of a run's model, tagged with the results, unless there is one; as "candidate"."""
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if not found:
        unless(THERE, client.create_registered_model, name)
        tags = {metric.key: f"{metric.value:.6g}" for metric in results}
        source = f"models:/{model_id}"
        with as_current(uri):  # where MLflow's SQL stores look for the model
            found = [client.create_model_version(name, source, run_id, tags, model_id=model_id)]
    client.set_registered_model_alias(name, ALIAS, found[0].version)
