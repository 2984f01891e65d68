"""Mirror an output folder into MLflow.

The folder is the truth: training and comparing write their results there and never wait for a
tracking server. :func:`track` sends what the server does not have yet, as often as it is called.
"""

import contextlib
import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

EXPERIMENT = "isomax"
STATE = "tracking.json"
_BATCH = 500


class TrackingError(RuntimeError):
    """The tracking server cannot be used; the results are safe in the output folder."""


def track(folder: str | Path, uri: str | None = None) -> str:
    """Send an output folder of ``isomax compare`` or ``isomax train`` to MLflow.

    One parent run, one child run for each loss and seed: parameters, metrics of every epoch,
    results, plots and models. What has been sent is not sent again; a run that is there is
    continued.

    :param folder: the output folder
    :param uri: any tracking URI of MLflow's; ``MLFLOW_TRACKING_URI`` or an SQLite file in the
        folder if not given
    :return: the tracking URI that was used
    :raises TrackingError: if the server cannot be reached or refuses
    """
    folder = Path(folder).resolve()
    if not (folder / "settings.json").is_file():
        raise TrackingError(f"{folder} is no output folder of isomax (it has no settings.json)")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(folder)
    try:
        with _quiet():
            client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = _experiment(client, folder, uri)
            parent = _Mirror(client, experiment, folder, uri, parent=None)
            parent.send()
            for run in sorted((folder / "runs").glob("*/settings.json")):
                _Mirror(client, experiment, run.parent, uri, parent=parent.run_id).send()
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrackingError(
            f"cannot track to {uri}: {reason}; the results are in {folder}, send them later with "
            f"'isomax track {folder}'"
        ) from error
    return uri


def ui_command(uri: str) -> str:
    """The command that opens MLflow's user interface on a tracking URI."""
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    return f"mlflow ui --backend-store-uri {uri}"


class _Mirror:
    """One folder and its run."""

    def __init__(
        self, client: mlflow.MlflowClient, experiment: str, folder: Path, uri: str,
        parent: str | None,
    ) -> None:  # fmt: skip
        self.client, self.folder, self.uri = client, folder, uri
        self.settings = json.loads((folder / "settings.json").read_text())
        self.state = self._read_state()
        if "run_id" not in self.state:
            tags = {"mlflow.runName": folder.name, "isomax.folder": str(folder)}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            started = int(1000 * (folder / "settings.json").stat().st_mtime)
            run = client.create_run(experiment, start_time=started, tags=tags)
            self.state = {"uri": uri, "run_id": run.info.run_id, "steps": 0, "files": {}}
            self._write_state()
        self.run_id: str = self.state["run_id"]

    def send(self) -> None:
        self._send_params()
        self._send_epochs()
        self._send_results()
        self._send_files()
        for name in ("results.csv", "model/config.json"):
            if (self.folder / name).is_file():
                ended = int(1000 * (self.folder / name).stat().st_mtime)
                self.client.set_terminated(self.run_id, end_time=ended)
                break

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / STATE
        if not path.is_file():
            return {}
        state: dict[str, Any] = json.loads(path.read_text())
        return state if state.get("uri") == self.uri else {}

    def _write_state(self) -> None:
        partial = self.folder / f".{STATE}.partial"
        partial.write_text(json.dumps(self.state, indent=1))
        partial.replace(self.folder / STATE)

    def _send_params(self) -> None:
        if self.state.get("params"):
            return
        flat = list(_flatten(self.settings))
        params = [Param(name, str(value)[:5000]) for name, value in flat]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self.state["params"] = True
        self._write_state()

    def _send_epochs(self) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        new = rows[self.state["steps"] :]
        metrics = [
            # a time of the epoch itself: sent twice, it is the same metric and stays one
            Metric(name, float(value), int(1000 * row["time"]), int(row["epoch"]))
            for row in new
            for name, value in row.items()
            if name not in ("epoch", "time")
        ]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self.state["steps"] = len(rows)
        self._write_state()

    def _send_results(self) -> None:
        if self.state.get("results") or not (self.folder / "results.csv").is_file():
            return
        if (self.folder / "runs").is_dir():  # the parent's table has everyone's rows
            self.state["results"] = True
            return
        text = (self.folder / "results.csv").read_text()
        stamp = int(1000 * (self.folder / "results.csv").stat().st_mtime)
        metrics = {}
        for row in csv.DictReader(io.StringIO(text)):
            for name in ("accuracy", "ECE"):
                metrics[name] = float(row[name])
            for name in ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR"):
                metrics[f"{name}/{row['ood']}/{row['detector']}"] = float(row[name])
        entities = [Metric(name, value, stamp, 0) for name, value in metrics.items()]
        for start in range(0, len(entities), _BATCH):
            self.client.log_batch(self.run_id, metrics=entities[start : start + _BATCH])
        self.state["results"] = True
        self._write_state()

    def _send_files(self) -> None:
        sent = self.state["files"]
        for name in ("report.html", "results.csv", "costs.csv", "model.onnx", "plots", "model"):
            path = self.folder / name
            files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
            for file in files:
                relative = str(file.relative_to(self.folder))
                stamp = file.stat().st_mtime_ns if file.is_file() else None
                if stamp is None or sent.get(relative) == stamp:
                    continue
                inside = str(Path(relative).parent)
                self.client.log_artifact(self.run_id, str(file), None if inside == "." else inside)
                sent[relative] = stamp
                self._write_state()
        table = self.folder / "results.csv"
        if table.is_file() and sent.get("table") != table.stat().st_mtime_ns:
            rows = list(csv.DictReader(io.StringIO(table.read_text())))
            columns = {key: [_value(row[key]) for row in rows] for key in rows[0]}
            self.client.log_table(self.run_id, columns, "results.json")
            sent["table"] = table.stat().st_mtime_ns
            self._write_state()


def _experiment(client: mlflow.MlflowClient, folder: Path, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # a server keeps artifacts where it was told to; SQLite's lie beside it
    place = (folder / "mlartifacts").as_uri() if uri == _default_uri(folder) else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))


def _default_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's and Alembic's chatter on the terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
