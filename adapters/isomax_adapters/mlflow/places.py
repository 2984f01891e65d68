"""The experiment that runs go into, and the run that they go under."""

import os
from pathlib import Path

import mlflow
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException

from isomax_adapters.mlflow.addresses import absolute, default_uri
from isomax_adapters.mlflow.errors import TrackingError, shown

EXPERIMENT = "isomax"


def open_run(uri: str) -> str | None:
    """The id of the run that is open there: the active one, or the one of ``MLFLOW_RUN_ID``."""
    active = mlflow.active_run()
    run_id = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
    return run_id if run_id and absolute(mlflow.get_tracking_uri()) == uri else None


def experiment_for(
    client: mlflow.MlflowClient, output: Path, uri: str, within: str | None
) -> Experiment:
    """The experiment of the run that is given, else the one that the environment names, else ours.

    :param output: the output folder
    :param within: the id of a run
    :raises TrackingError: if there is no such run or experiment, or it is deleted
    """
    if within is not None:
        return _of_run(client, uri, within)
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if number and "MLFLOW_EXPERIMENT_NAME" not in os.environ and uri != default_uri(output):
        found = _by_number(client, uri, number)
    else:
        found = client.get_experiment_by_name(name) or _made(client, output, uri, name)
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"the experiment {found.name!r} of MLflow at {shown(uri)} is deleted",
            "restore it with 'mlflow experiments restore --experiment-id "
            f"{found.experiment_id}', or set MLFLOW_EXPERIMENT_NAME to another",
        )
    return found


def _of_run(client: mlflow.MlflowClient, uri: str, run_id: str) -> Experiment:
    way_out = "unset MLFLOW_RUN_ID, or set it to a run that is there"
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(f"MLflow at {shown(uri)} has no run {run_id}", way_out) from error
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(f"the run {run_id} of MLflow at {shown(uri)} is deleted", way_out)
    return client.get_experiment(run.info.experiment_id)


def _by_number(client: mlflow.MlflowClient, uri: str, number: str) -> Experiment:
    try:
        return client.get_experiment(number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(
            f"MLflow at {shown(uri)} has no experiment of MLFLOW_EXPERIMENT_ID, {number}",
            "unset it, or set it to one that is there ('mlflow experiments search')",
        ) from error


def _made(client: mlflow.MlflowClient, output: Path, uri: str, name: str) -> Experiment:
    # a server keeps artifacts where it was told to; SQLite's lie beside it
    place = (output / "mlartifacts").as_uri() if uri == default_uri(output) else None
    try:
        client.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
            raise
    return client.get_experiment_by_name(name)
