"""One folder of an output folder, and the MLflow run that mirrors it.

What is to be sent is the difference between the folder's files and what the server says that it
has; so what arrived without anybody's knowing is not sent again. What was sent is noted, with size
and time of its file, so that not all is asked for each time.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from isomax_adapters.mlflow.tracking import content, places, registry
from isomax_adapters.mlflow.tracking.errors import Failures, shown

_METRICS, _PARAMS = 500, 100  # in one request


class Mirror:
    """One folder and its run."""

    def __init__(
        self,
        client: mlflow.MlflowClient,
        uri: str,
        output: Path,
        folder: Path,
        parent: str | None,
        failures: Failures,
        live: bool,
    ) -> None:
        self.client, self.uri, self.output, self.folder = client, uri, output, folder
        self.parent, self.failures = parent, failures
        self.settings = content.parsed(folder / "settings.json")
        self.is_comparison = folder == output and "losses" in self.settings
        server = places.OWN if uri == places.default_uri(output) else shown(uri)
        states = places.read_state(folder)
        self.state: dict[str, Any] = states.get(server, {})
        # the one that was used last is the last, even if it does not answer
        self.states = {name: states[name] for name in states if name != server}
        self.states[server] = self.state
        if list(states) != list(self.states):
            places.write_state(folder, self.states)
        if not (live and "run_id" in self.state):
            _ = self.run  # else asked for when there is something to send

    @cached_property
    def run(self) -> Run:
        """As the server had it before anything was sent; made if it is not there."""
        if "run_id" in self.state:
            run = places.unless(places.MISSING, self.client.get_run, self.state["run_id"])
            if run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run
        # one whose id could not be written down, or was lost, is found by its key
        settings = self.folder / "settings.json"
        stamp = settings.stat().st_mtime_ns
        key = hashlib.sha256(f"{stamp} ".encode() + settings.read_bytes()).hexdigest()[:32]
        place = places.experiment_for(self.client, self.output, self.uri, self.parent).experiment_id
        same = self.client.search_runs([place], f"tags.`isomax.key` = '{key}'", max_results=1)
        tags = {
            MLFLOW_RUN_NAME: content.readable(self.folder.name),
            "isomax.key": key,
            "isomax.folder": content.readable(str(self.folder)),
        }
        run = same[0] if same else self.client.create_run(place, stamp // 1_000_000, tags=tags)
        self.state.clear()
        self.state |= {"run_id": str(run.info.run_id), "folder": str(self.output), "sent": {}}
        places.write_state(self.folder, self.states)
        return run

    @property
    def run_id(self) -> str:
        return self.state["run_id"]

    @property
    def last(self) -> Path:
        """The file that is written last."""
        if self.is_comparison:
            return self.folder / "report.html"
        name = "model/calibration.json" if self.folder == self.output else content.RESULTS
        return self.folder / name

    @property
    def finished(self) -> bool:
        return self.last.is_file()

    @property
    def params(self) -> dict[str, str]:
        settings = content.named(content.flatten(self.settings))
        return {name: content.readable(str(value))[:5000] for name, value in settings.items()}

    @property
    def results(self) -> list[Metric]:
        """Of a trained model; a comparison's are in its table."""
        found = {} if self.is_comparison else content.results_of(self.folder)
        stamp = int(1000 * self.last.stat().st_mtime)
        return [Metric(name, value, stamp, 0) for name, value in found.items()]

    def send_numbers(self, unfinished: str | None) -> None:
        """And parameters, tags, data sets and status, which is given for what has no results."""
        self._once("parent", self.parent, self._send_parent)
        self._once("params", self._stamp("settings.json"), self._send_params)
        self._once("provenance", self._stamp("provenance.json"), self._send_provenance)
        for name in content.ROWS:
            self._once(f"rows of {name}", self._stamp(name), self._send_rows, name)
        if self.finished and (summary := self._stamp("summary.json")):
            stamp = [summary, self._stamp(content.RESULTS)]  # a table may have grown since
            self._once("results", stamp, lambda: self._send_metrics(self.results))
        status = "FINISHED" if self.finished else unfinished
        self._once("status", status, self._send_status, status)

    def send_files(self) -> None:
        """And the exported model."""
        for name in content.ARTIFACTS:
            path = self.folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if not file.name.startswith("."):  # a hidden one is being written
                    relative = str(file.relative_to(self.folder))
                    self._once(relative, self._stamp(relative), self._send_file, relative)
        if self.finished and (self.folder / registry.MODEL).is_file():
            asked = registry.asked_name(self.folder)
            self._once(f"models:/{asked or ''}", "sent", self._send_model, asked)

    def _stamp(self, name: str) -> list[int] | None:
        path = self.folder / name
        return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None

    def _once(self, item: str, stamp: Any, send: Callable[..., None], *args: Any) -> None:
        """Send, unless it is not there or has been sent as it is."""
        if stamp is None or self.state["sent"].get(item) == stamp:
            return
        with self.failures.collected():
            send(*args)
            self.state["sent"][item] = stamp
            places.write_state(self.folder, self.states)

    def _send_parent(self) -> None:
        if self.run.data.tags.get(MLFLOW_PARENT_RUN_ID) != self.parent:
            self.client.set_tag(self.run_id, MLFLOW_PARENT_RUN_ID, self.parent)

    def _send_params(self) -> None:
        there = self.run.data.params
        new = [Param(name, value) for name, value in self.params.items() if name not in there]
        for start in range(0, len(new), _PARAMS):
            self.client.log_batch(self.run_id, params=new[start : start + _PARAMS])

    def _send_provenance(self) -> None:
        provenance = content.parsed(self.folder / "provenance.json")
        tags = content.tags_of(provenance, self.settings).items()
        if new := [RunTag(*tag) for tag in tags if tag not in self.run.data.tags.items()]:
            self.client.log_batch(self.run_id, tags=new)
        self.client.log_inputs(self.run_id, datasets=content.datasets_of(provenance))

    def _send_rows(self, name: str) -> None:
        """The metrics of a file of JSON lines, but for a line that is being written."""
        lines = content.read_text(self.folder / name).split("\n")[:-1]
        self._send_metrics(
            Metric(key, float(value), int(1000 * row["time"]), int(row["epoch"]))
            for row in [content.parsed(self.folder / name, line) for line in lines]
            for key, value in row.items()
            if key not in ("epoch", "time")
        )

    def _send_metrics(self, metrics: Iterable[Metric]) -> None:
        """Those of steps after the last that the server has: they are sent in their order."""
        last = {metric.key: metric.step for metric in self.run.data._metric_objs}
        new = [metric for metric in metrics if metric.step > last.get(metric.key, -1)]
        for start in range(0, len(new), _METRICS):
            self.client.log_batch(self.run_id, metrics=new[start : start + _METRICS])

    def _send_status(self, status: str) -> None:
        if self.run.info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            ended = int(1000 * self.last.stat().st_mtime) if self.finished else None
            self.client.set_terminated(self.run_id, status=status, end_time=ended)

    def _send_file(self, relative: str) -> None:
        there = Path(content.readable(relative))
        inside = None if there.parent == Path() else str(there.parent)
        with content.called(self.folder / relative, there.name) as path:
            self.client.log_artifact(self.run_id, str(path), inside)
        if relative in content.TABLES and (table := content.table_of(self.folder / relative)):
            self.client.log_dict(self.run_id, table, f"{there.stem}.json")
            tables = [
                {"path": f"{Path(name).stem}.json", "type": "table"}
                for name in content.TABLES
                if content.read_rows(self.folder / name)
            ]
            self.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables))

    def _send_model(self, asked: str | None) -> None:
        path, results = self.folder / registry.MODEL, self.results
        model_id = registry.log(self.client, path, self.run_id, self.params, results)
        if asked is not None:
            registry.register(self.client, self.uri, asked, self.run_id, model_id, results)
