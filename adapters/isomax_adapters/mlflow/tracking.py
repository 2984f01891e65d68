"""Mirror an output folder into MLflow.

The folder is the truth: training and comparing write their results there and never wait for a
tracking server. :func:`track` sends what the server does not have yet, as often as it is called.
"""

import csv
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from isomax_adapters.mlflow.registry import send_model
from isomax_adapters.mlflow.server import (
    FAILURES,
    TrackingError,
    connect,
    default_uri,
    patience,
    quiet,
    reason_of,
    shown,
    uri_for,
)

__all__ = ["TrackingError", "track", "ui_command"]

EXPERIMENT = "isomax"
STATE = "tracking.json"
SYSTEM_METRICS = "system.jsonl"
_BATCH = 500
_ROWS = ("metrics.jsonl", SYSTEM_METRICS)
_TABLES = ("results.csv", "intervals.csv", "costs.csv", "errors.csv")
_ARTIFACTS = (
    "report.html",
    *_TABLES,
    "hyperparameters.json",
    "summary.json",
    "settings.json",
    "plots",
    "model",
)
_RESULTS = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")


def track(folder: str | Path, uri: str | None = None, unfinished: str | None = None) -> str:
    """Send an output folder of ``isomax compare`` or ``isomax train`` to MLflow.

    One parent run, one child run for each loss and seed: parameters, tags, datasets, metrics of
    every epoch, results, plots and models. What has been sent is not sent again; a run that is
    there is continued.

    :param folder: the output folder
    :param uri: any tracking URI of MLflow's; ``MLFLOW_TRACKING_URI`` or an SQLite file in the
        folder if not given
    :param unfinished: status of runs that have no results yet: ``RUNNING``, ``FAILED`` or
        ``KILLED``; left as it is if not given
    :return: the tracking URI that was used
    :raises TrackingError: if the server cannot be reached or refuses
    """
    folder = Path(folder).resolve()
    if not (folder / "settings.json").is_file():
        raise TrackingError(
            f"{folder} is no output folder of isomax (it has no settings.json)",
            "give the one of a training or comparison",
        )
    uri = uri_for(folder, uri)
    try:
        with FileLock(folder / ".tracking.lock"), quiet(), patience():
            client = connect(uri)
            parent = _Mirror(client, folder, folder, uri, None)
            parent.send(unfinished)
            for run in sorted((folder / "runs").glob("*/settings.json")):
                _Mirror(client, folder, run.parent, uri, parent.run_id).send(unfinished)
    except FAILURES as error:
        raise TrackingError(
            f"cannot track to {shown(uri)}: {reason_of(error)}",
            f"the results are in {folder}, send what is missing with 'isomax track {folder}'",
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
        self, client: mlflow.MlflowClient, output: Path, folder: Path, uri: str, parent: str | None
    ) -> None:
        self.client, self.output, self.folder, self.uri = client, output, folder, uri
        self.settings = json.loads((folder / "settings.json").read_text())
        self.is_comparison = parent is None and "losses" in self.settings
        # one state for each server; SQLite's file may move with the folder
        self.server = "" if uri == default_uri(output) else shown(uri)
        self.states: dict[str, Any] = {}
        if (folder / STATE).is_file():
            self.states = json.loads((folder / STATE).read_text())
        self.state = self.states.setdefault(self.server, {"key": uuid.uuid4().hex})
        self.run_id: str = self.state.get("run_id") or self._make_run(parent)

    def send(self, unfinished: str | None) -> None:
        self._send_params()
        self._send_provenance()
        for name in _ROWS:
            self._send_rows(name)
        self._send_results()
        self._send_files()
        if self._finished():
            send_model(
                self.client,
                self.uri,
                self.folder,
                self.run_id,
                self._results(),
                self.state,
                self._remember,
            )
        self._send_status(unfinished)

    def _remember(self, **changes: Any) -> None:
        self.state.update(changes)
        partial = self.folder / f".{STATE}.partial"
        partial.write_text(json.dumps(self.states, indent=1))
        partial.replace(self.folder / STATE)

    def _make_run(self, parent: str | None) -> str:
        # the key is written down first: killed before the run's id is, the run is found by it
        key = self.state["key"]
        self._remember()
        experiment = _experiment(self.client, self.output, self.uri)
        found = self.client.search_runs([experiment], f"tags.`isomax.key` = '{key}'", max_results=1)
        if found:
            run = found[0]
        else:
            started = int(1000 * (self.folder / "settings.json").stat().st_mtime)
            tags = {
                MLFLOW_RUN_NAME: self.folder.name,
                "isomax.key": key,
                "isomax.folder": str(self.folder),
            }
            if parent is not None:
                tags[MLFLOW_PARENT_RUN_ID] = parent
            run = self.client.create_run(experiment, start_time=started, tags=tags)
        self._remember(run_id=run.info.run_id, sent={}, files={}, experiment=experiment)
        return str(run.info.run_id)

    def _send_params(self) -> None:
        if self.state.get("params"):
            return
        params = [Param(name, str(value)[:5000]) for name, value in _flatten(self.settings)]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self._remember(params=True)

    def _send_provenance(self) -> None:
        """Tags and datasets."""
        path = self.folder / "provenance.json"
        stamp = path.stat().st_mtime_ns if path.is_file() else None
        if stamp is None or self.state.get("provenance") == stamp:
            return
        provenance = json.loads(path.read_text())
        tags = {
            MLFLOW_SOURCE_NAME: provenance["command"],
            MLFLOW_SOURCE_TYPE: "LOCAL",
            MLFLOW_USER: provenance["user"],
            **{f"version.{name}": version for name, version in provenance["versions"].items()},
        }
        if provenance["git_commit"]:
            tags[MLFLOW_GIT_COMMIT] = provenance["git_commit"]
        for name in ("seed", "seeds", "loss", "model"):
            if name in self.settings:
                tags[name] = str(self.settings[name])
        self.client.log_batch(self.run_id, tags=[RunTag(*item) for item in tags.items()])
        self.client.log_inputs(self.run_id, datasets=list(map(_dataset, provenance["datasets"])))
        self._remember(provenance=stamp)

    def _send_rows(self, name: str) -> None:
        """The metrics of a file with one JSON object per line."""
        text = _read(self.folder / name)
        if text is None:
            return
        # without a line that is being written
        lines = text[: text.rfind("\n") + 1].splitlines()
        sent = self.state["sent"].get(name, 0)
        new = [json.loads(line) for line in lines[sent:]]
        if not new:
            return
        self._send_metrics(
            [
                Metric(key, float(value), int(1000 * row["time"]), int(row["epoch"]))
                for row in new
                for key, value in row.items()
                if key not in ("epoch", "time")
            ]
        )
        self._remember(sent=self.state["sent"] | {name: len(lines)})

    def _send_metrics(self, metrics: list[Metric]) -> None:
        if self.state.get("in_doubt"):
            # cut off while it was sending: the server knows what has arrived
            there = {
                (key, metric.step)
                for key in {metric.key for metric in metrics}
                for metric in self.client.get_metric_history(self.run_id, key)
            }
            metrics = [metric for metric in metrics if (metric.key, metric.step) not in there]
        self._remember(in_doubt=True)
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._remember(in_doubt=False)

    def _send_results(self) -> None:
        if self.state.get("results") or not self._finished():
            return
        stamp = int(1000 * self._last().stat().st_mtime)
        self._send_metrics(
            [Metric(name, value, stamp, 0) for name, value in self._results().items()]
        )
        self._remember(results=True)

    def _results(self) -> dict[str, float]:
        """Of a trained model; a comparison's are in its table."""
        if self.is_comparison:
            return {}
        # the last epoch's val_accuracy is there already
        found = json.loads((self.folder / "summary.json").read_text())
        metrics = {name: float(value) for name, value in found.items() if name != "val_accuracy"}
        for row in _table(self.folder / "results.csv"):
            metrics |= {name: float(row[name]) for name in ("accuracy", "ECE")}
            for name in _RESULTS:
                if row[name]:  # a detector may have failed
                    metrics[f"{name}/{row['ood']}/{row['detector']}"] = float(row[name])
        return metrics

    def _send_files(self) -> None:
        for name in _ARTIFACTS:
            path = self.folder / name
            files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
            for file in files:
                relative = str(file.relative_to(self.folder))
                stamp = file.stat().st_mtime_ns if file.is_file() else None
                if stamp is None or self.state["files"].get(relative) == stamp:
                    continue
                inside = str(Path(relative).parent)
                self.client.log_artifact(self.run_id, str(file), None if inside == "." else inside)
                if name in _TABLES:
                    self._send_table(file)
                self._remember(files=self.state["files"] | {relative: stamp})

    def _send_table(self, path: Path) -> None:
        """As MLflow's log_table does, which appends if it is called again."""
        rows = _table(path)
        if not rows:
            return
        columns = list(rows[0])
        table = {"columns": columns, "data": [[_value(row[c]) for c in columns] for row in rows]}
        self.client.log_dict(self.run_id, table, path.with_suffix(".json").name)
        tables = [
            {"path": f"{Path(name).stem}.json", "type": "table"}
            for name in _TABLES
            if _table(self.folder / name)
        ]
        self.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables))

    def _last(self) -> Path:
        """The file that is written last."""
        if self.is_comparison:
            return self.folder / "report.html"
        if self.folder != self.output:
            return self.folder / "results.csv"
        return self.folder / "model" / "calibration.json"

    def _finished(self) -> bool:
        return self._last().is_file()

    def _send_status(self, unfinished: str | None) -> None:
        status = "FINISHED" if self._finished() else unfinished
        if status is None or self.state.get("status", "RUNNING") == status:
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            ended = int(1000 * self._last().stat().st_mtime) if self._finished() else None
            self.client.set_terminated(self.run_id, status=status, end_time=ended)
        self._remember(status=status)


def _experiment(client: mlflow.MlflowClient, folder: Path, uri: str) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        # a server keeps artifacts where it was told to; SQLite's lie beside it
        place = (folder / "mlartifacts").as_uri() if uri == default_uri(folder) else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run was faster
    return str(found.experiment_id)


def _dataset(content: dict[str, Any]) -> DatasetInput:
    """Of an entry of provenance.json."""
    profile = {"num_rows": content["size"], "num_classes": content["classes"]}
    dataset = Dataset(
        name=content["name"],
        digest=content["digest"],
        source_type="local",
        source=json.dumps({"uri": content["source"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, content["split"])])


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_read(path) or "")))


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
