"""Tracking again after any one call to MLflow has failed, or was the last before the end."""

import json
import shutil
from functools import wraps
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

from isomax_adapters.mlflow import TrackingError, ask_to_register, track

STORES = {"tracking": Tracking, "registry": Registry, "artifacts": LocalArtifactRepository}
READS = ("get_", "search_", "list_", "download_")


class Calls:
    """What is asked of the stores, by name; the one of a number fails."""

    def __init__(self):
        self.names, self.fail_at, self.way, self.inside = [], None, None, False

    def of(self, work, fail_at=None, way=None):
        self.names, self.fail_at, self.way = [], fail_at, way
        try:
            work()
        finally:
            self.fail_at = None
        return self.names[:]

    def wrap(self, name, method):
        @wraps(method)
        def called(store, *args, **kwargs):
            if self.inside:  # a store's own business
                return method(store, *args, **kwargs)
            self.names.append(name)
            fails = len(self.names) - 1 == self.fail_at
            if fails and self.way == "refused":
                raise ConnectionRefusedError(111, "Connection refused")
            self.inside = True
            try:
                answer = method(store, *args, **kwargs)
            finally:
                self.inside = False
            if fails and self.way == "answer lost":
                raise ConnectionResetError(104, "Connection reset by peer")
            if fails:
                raise KeyboardInterrupt
            return answer

        return called


@pytest.fixture
def calls(monkeypatch):
    found = Calls()
    for kind, store in STORES.items():
        for name in dir(store):
            method = getattr(store, name)
            if not name.startswith("_") and callable(method) and not isinstance(method, type):
                monkeypatch.setattr(store, name, found.wrap(f"{kind}.{name}", method))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_path):
    """A comparison of one training, with tables, datasets and a model to register."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    child = folder / "runs" / "isomax-seed0"
    (child / "model").mkdir(parents=True)
    content = {"name": "digits", "digest": "1", "size": 9, "classes": 3, "source": "x"}
    provenance = {
        "command": "isomax compare", "user": "me", "versions": {"torch": "2"}, "git_commit": "c",
        "datasets": [content | {"split": "train"}, content | {"digest": "2", "split": "test"}],
    }  # fmt: skip
    for place, settings in ((folder, {"losses": ["isomax"]}), (child, {"loss": "isomax"})):
        (place / "settings.json").write_text(json.dumps(settings))
        (place / "provenance.json").write_text(json.dumps(provenance))
        header = "ood,detector,accuracy,ECE,AUROC,AUPR-IN,AUPR-OUT,FPR95TPR"
        (place / "results.csv").write_text(f"{header}\nnoise,Entropic,0.9,0.01,0.8,0.7,0.6,0.5\n")
    rows = [{"epoch": e, "time": 1e9 + e, "train_loss": 1 / (e + 1)} for e in range(3)]
    for name in ("metrics.jsonl", "system.jsonl"):
        (child / name).write_text("".join(json.dumps(row | {name[0]: 1}) + "\n" for row in rows))
    (child / "summary.json").write_text(json.dumps({"test_accuracy": 0.5}))
    (child / "model" / "calibration.json").write_text("{}")
    (folder / "report.html").write_text("<html>")
    shutil.copy(model_path, child / "model.onnx")
    return folder


def contents(uri, name):
    """All that MLflow holds of an experiment and the model of its name, without ids and times."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = client.search_experiments(filter_string=f"name = '{name}'")
    ids = [experiment.experiment_id for experiment in experiments]
    runs = [client.get_run(run.info.run_id) for run in client.search_runs(ids)]
    names = {run.info.run_id: run.info.run_name for run in runs}
    models = client.search_logged_models(ids)
    versions = client.search_model_versions(f"name = '{name}'")
    (place,) = [Path(unquote(urlsplit(e.artifact_location).path)) for e in experiments]
    keys = ("isomax.key", "isomax.folder", "mlflow.parentRunId")
    places = names | {model.model_id: f"{model.name} of the run" for model in models}
    files = [path.relative_to(place) for path in place.rglob("*.*")]
    return {
        "files": sorted("/".join(places.get(p, p) for p in file.parts) for file in files),
        "experiments": len(experiments),
        "runs": sorted(
            (
                run.info.run_name,
                run.info.status,
                sorted(run.data.params.items()),
                sorted((k, v) for k, v in run.data.tags.items() if k not in keys),
                names.get(run.data.tags.get("mlflow.parentRunId")),
                [
                    (m.key, m.step, m.value)
                    for key in sorted(run.data.metrics)
                    for m in client.get_metric_history(run.info.run_id, key)
                ],
                sorted(entry.dataset.digest for entry in run.inputs.dataset_inputs),
                [
                    output.model_id
                    for output in client.get_run(run.info.run_id).outputs.model_outputs
                ]
                == [m.model_id for m in models if m.source_run_id == run.info.run_id],
            )
            for run in runs
        ),
        "models": [
            (
                model.name,
                model.status,
                names[model.source_run_id],
                sorted(model.params.items()),
                sorted((metric.key, metric.step, metric.value) for metric in model.metrics),
            )
            for model in models
        ],
        "versions": [
            (
                version.version,
                version.status,
                sorted(client.get_registered_model(version.name).aliases.items()),
                version.tags,
                names[version.run_id],
                version.source in [f"models:/{model.model_id}" for model in models],
            )
            for version in versions
        ],
    }


@pytest.mark.parametrize("way", ["refused", "answer lost", "interrupted"])
def test_any_call_may_fail_once(finished, database, tmp_path, calls, monkeypatch, way):
    # one database, as MLflow takes long to open another
    uri = f"sqlite:///{shutil.copy(database, tmp_path)}"

    def copy(name):
        """A folder that is tracked to an experiment and registered under a name of its own."""
        folder = shutil.copytree(finished, tmp_path / name / "out")
        ask_to_register(folder / "runs" / "isomax-seed0", name)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        return folder

    track(copy("first"), uri)  # makes one call more, for the store
    folder = copy("undisturbed")
    names = calls.of(lambda: track(folder, uri))
    expected = contents(uri, "undisturbed")
    assert expected["models"][0][:3] == ("model", LoggedModelStatus.READY, "isomax-seed0")
    assert [version[:3] for version in expected["versions"]] == [(1, "READY", [("candidate", 1)])]
    print(f"{len(names)} calls, each {way} once:", *names, sep="\n    ")
    assert {name.partition(".")[0] for name in names} == set(STORES)
    wrong, unnoticed = {}, []
    for number, name in enumerate(names):
        if way != "refused" and name.partition(".")[2].startswith(READS):
            continue  # has changed nothing
        folder = copy(f"case-{number}")
        try:
            calls.of(lambda folder=folder: track(folder, uri), number, way)
        except (TrackingError, KeyboardInterrupt):
            track(folder, uri)
        else:
            unnoticed.append(name)
        if (found := contents(uri, f"case-{number}")) != expected:
            wrong[f"{number} {name}"] = [
                (found[key], expected[key]) for key in expected if found[key] != expected[key]
            ]
    assert not wrong
    assert not unnoticed
