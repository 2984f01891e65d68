"""One folder of an output folder, and the MLflow run that mirrors it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from isomax_adapters.mlflow.addresses import OWN, STATE, default_uri, read_state
from isomax_adapters.mlflow.content import (
    ARTIFACTS,
    RESULTS,
    ROWS,
    TABLES,
    called,
    dataset_input,
    flatten,
    named,
    number_or_text,
    parsed,
    read_rows,
    read_text,
    readable,
)
from isomax_adapters.mlflow.errors import Failures, shown
from isomax_adapters.mlflow.places import experiment_for
from isomax_adapters.mlflow.registry import send_model

_BATCH = 500
_RATES = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")


class Mirror:
    """One folder and its run."""

    def __init__(
        self,
        client: mlflow.MlflowClient,
        output: Path,
        folder: Path,
        uri: str,
        parent: str | None,
        live: bool,
    ) -> None:
        self.client, self.output, self.folder, self.uri = client, output, folder, uri
        self.settings = parsed(folder / "settings.json")
        self.is_comparison = folder == output and "losses" in self.settings
        server = OWN if uri == default_uri(output) else shown(uri)
        self.states = read_state(folder)
        is_last = next(reversed(self.states), None) == server
        self.state = self.states.pop(server, {})
        self.states[server] = self.state
        if not is_last:
            self._remember()
        # a comparison goes on and on; its finished runs are not asked for each time
        if not (live and self.state.get("status") == "FINISHED") and not self._is_there():
            self._make_run(parent)
        self.run_id: str = self.state["run_id"]
        if parent is not None and self.state.get("parent") != parent:
            client.set_tag(self.run_id, MLFLOW_PARENT_RUN_ID, parent)
            self._remember(parent=parent)

    def send_numbers(self, unfinished: str | None, failures: Failures) -> None:
        """And tags, datasets and status."""
        with failures.collected():
            self._send_params()
        with failures.collected():
            self._send_provenance()
        for name in ROWS:
            with failures.collected():
                self._send_rows(name)
        with failures.collected():
            self._send_results()
        with failures.collected():
            self._send_status(unfinished)

    def send_files(self, failures: Failures) -> None:
        """And the exported model."""
        for name in ARTIFACTS:
            path = self.folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                # a hidden one is being written
                if file.is_file() and not file.name.startswith("."):
                    with failures.collected():
                        self._send_file(file)
        if self.finished():
            with failures.collected():
                send_model(
                    self.client,
                    self.uri,
                    self.folder,
                    self.run_id,
                    self._params(),
                    self._results(),
                    self.state,
                    self._remember,
                )

    def _remember(self, **changes: Any) -> None:
        self.state.update(changes)
        partial = self.folder / f".{STATE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self.states, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / STATE)

    def _is_there(self) -> bool:
        if "run_id" not in self.state:
            return False
        try:
            run = self.client.get_run(self.state["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return bool(run.info.lifecycle_stage == LifecycleStage.ACTIVE)

    def _make_run(self, parent: str | None) -> None:
        # a run whose id could not be written down, or was lost, is found by its key
        settings = self.folder / "settings.json"
        stamp = settings.stat().st_mtime_ns
        key = hashlib.sha256(f"{stamp} ".encode() + settings.read_bytes()).hexdigest()[:32]
        place = experiment_for(self.client, self.output, self.uri, parent)
        experiment = place.experiment_id
        found = self.client.search_runs([experiment], f"tags.`isomax.key` = '{key}'", max_results=1)
        if found:
            run = found[0]
        else:
            tags = {
                MLFLOW_RUN_NAME: readable(self.folder.name),
                "isomax.key": key,
                "isomax.folder": readable(str(self.folder)),
            }
            if parent is not None:
                tags[MLFLOW_PARENT_RUN_ID] = parent
            run = self.client.create_run(experiment, start_time=stamp // 1_000_000, tags=tags)
        self.state.clear()
        self._remember(
            run_id=str(run.info.run_id),
            folder=str(self.output),
            sent={},
            files={},
            doubt=[*ROWS, RESULTS] if found else [],
            **({} if found or parent is None else {"parent": parent}),
        )

    def _send_params(self) -> None:
        if self.state.get("params"):
            return
        params = [Param(name, value) for name, value in self._params().items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self._remember(params=True)

    def _params(self) -> dict[str, str]:
        settings = named(flatten(self.settings))
        return {name: readable(str(value))[:5000] for name, value in settings.items()}

    def _send_provenance(self) -> None:
        """Tags and datasets."""
        path = self.folder / "provenance.json"
        stamp = path.stat().st_mtime_ns if path.is_file() else None
        if stamp is None or self.state.get("provenance") == stamp:
            return
        provenance = parsed(path)
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
        self.client.log_batch(
            self.run_id, tags=[RunTag(name, readable(value)) for name, value in tags.items()]
        )
        self.client.log_inputs(
            self.run_id, datasets=list(map(dataset_input, provenance["datasets"]))
        )
        self._remember(provenance=stamp)

    def _send_rows(self, name: str) -> None:
        """The metrics of a file with one JSON object per line."""
        text = read_text(self.folder / name)
        if text is None:
            return
        # without a line that is being written
        lines = text[: text.rfind("\n") + 1].splitlines()
        sent = self.state["sent"].get(name, 0)
        new = [parsed(self.folder / name, line) for line in lines[sent:]]
        if not new:
            return
        self._send_metrics(
            name,
            [
                Metric(key, float(value), int(1000 * row["time"]), int(row["epoch"]))
                for row in new
                for key, value in row.items()
                if key not in ("epoch", "time")
            ],
            sent=self.state["sent"] | {name: len(lines)},
        )

    def _send_metrics(self, source: str, metrics: list[Metric], **then: Any) -> None:
        """Of one source, so that it is known what is in doubt; ``then`` they are remembered."""
        doubt = self.state.get("doubt", [])
        if source in doubt:
            # cut off while it was sending: the server knows what has arrived
            there = {
                (key, metric.step)
                for key in {metric.key for metric in metrics}
                for metric in self.client.get_metric_history(self.run_id, key)
            }
            metrics = [metric for metric in metrics if (metric.key, metric.step) not in there]
        else:
            self._remember(doubt=[*doubt, source])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._remember(doubt=[name for name in doubt if name != source], **then)

    def _send_results(self) -> None:
        path = self.folder / RESULTS
        size = path.stat().st_size if path.is_file() else 0
        # a comparison may have grown since
        if self.state.get("results") == size or not self.finished():
            return
        stamp = int(1000 * self._last().stat().st_mtime)
        there = self.client.get_run(self.run_id).data.metrics if "results" in self.state else {}
        new = {name: value for name, value in self._results().items() if name not in there}
        self._send_metrics(
            RESULTS,
            [Metric(name, value, stamp, 0) for name, value in new.items()],
            results=size,
        )

    def _results(self) -> dict[str, float]:
        """Of a trained model; a comparison's are in its table."""
        if self.is_comparison:
            return {}
        # the last epoch's val_accuracy is there already
        found = parsed(self.folder / "summary.json")
        metrics = {
            name: float(value)
            for name, value in found.items()
            if name != "val_accuracy" and isinstance(value, (int, float))
        }
        for row in read_rows(self.folder / RESULTS):
            metrics |= {name: float(row[name]) for name in ("accuracy", "ECE")}
            for name in _RATES:
                if row[name]:  # a detector may have failed
                    metrics[f"{name}/{row['ood']}/{row['detector']}"] = float(row[name])
        return named(metrics.items())

    def _send_file(self, file: Path) -> None:
        relative = file.relative_to(self.folder)
        stamp = file.stat().st_mtime_ns
        if self.state["files"].get(str(relative)) == stamp:
            return
        there = Path(readable(str(relative)))
        inside = None if there.parent == Path() else str(there.parent)
        with called(file, there.name) as path:
            self.client.log_artifact(self.run_id, str(path), inside)
        if str(relative) in TABLES:
            self._send_table(file)
        self._remember(files=self.state["files"] | {str(relative): stamp})

    def _send_table(self, path: Path) -> None:
        """As MLflow's log_table does, which appends if it is called again."""
        rows = read_rows(path)
        if not rows:
            return
        columns = list(rows[0])
        table = {
            "columns": list(map(readable, columns)),
            "data": [[number_or_text(row[c]) for c in columns] for row in rows],
        }
        self.client.log_dict(self.run_id, table, path.with_suffix(".json").name)
        tables = [
            {"path": f"{Path(name).stem}.json", "type": "table"}
            for name in TABLES
            if read_rows(self.folder / name)
        ]
        self.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables))

    def _last(self) -> Path:
        """The file that is written last."""
        if self.is_comparison:
            return self.folder / "report.html"
        if self.folder != self.output:
            return self.folder / RESULTS
        return self.folder / "model" / "calibration.json"

    def finished(self) -> bool:
        return self._last().is_file()

    def _send_status(self, unfinished: str | None) -> None:
        status = "FINISHED" if self.finished() else unfinished
        if status is None or self.state.get("status", "RUNNING") == status:
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            ended = int(1000 * self._last().stat().st_mtime) if self.finished() else None
            self.client.set_terminated(self.run_id, status=status, end_time=ended)
        self._remember(status=status)
