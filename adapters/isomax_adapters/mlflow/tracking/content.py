"""An output folder's files, in the terms of MLflow's entities."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from isomax_adapters.runtime.errors import InputError

SYSTEM_METRICS = "system.jsonl"
ROWS = ("metrics.jsonl", SYSTEM_METRICS)
RESULTS = "results.csv"
TABLES = (
    *(RESULTS, "intervals.csv", "costs.csv", "errors.csv", "left_out.csv"),
    *("hyperparameters.csv", "classes.csv", "deployable.csv"),
)
ARTIFACTS = (
    *("report.html", *TABLES, "README.md", "hyperparameters.json", "predictions.csv", "splits.csv"),
    *("summary.json", "settings.json", "plots", "model", "chosen.onnx", "chosen.json"),
)
_RATES = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")


def tags_of(provenance: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """MLflow's tags, of provenance.json and settings.json."""
    tags = {
        MLFLOW_SOURCE_NAME: provenance["command"],
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_USER: provenance["user"],
        **{f"version.{name}": version for name, version in provenance["versions"].items()},
        **{name: settings[name] for name in ("seed", "seeds", "loss", "model") if name in settings},
    }
    if provenance["git_commit"]:
        tags[MLFLOW_GIT_COMMIT] = provenance["git_commit"]
    return {name: readable(str(value)) for name, value in tags.items()}


def datasets_of(provenance: dict[str, Any]) -> list[DatasetInput]:
    """The data sets of provenance.json."""
    return [
        DatasetInput(
            Dataset(
                name=readable(entry["name"]),
                digest=entry["digest"],
                source_type="local",
                source=json.dumps({"uri": entry["source"]}),
                profile=json.dumps({"num_rows": entry["size"], "num_classes": entry["classes"]}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, entry["split"])],
        )
        for entry in provenance["datasets"]
    ]


def results_of(folder: Path) -> dict[str, float]:
    """The metrics of a trained model: its summary, and the rates of each detector."""
    found = {
        name: float(value)
        for name, value in parsed(folder / "summary.json").items()
        # the last epoch's val_accuracy is there already
        if name != "val_accuracy" and isinstance(value, (int, float))
    }
    for row in read_rows(folder / RESULTS):
        found |= {name: float(row[name]) for name in ("accuracy", "ECE")}
        for name in _RATES:
            if row[name]:  # a detector may have failed
                found[f"{name}/{row['ood']}/{row['detector']}"] = float(row[name])
    return named(found.items())


def table_of(path: Path) -> dict[str, list] | None:
    """A CSV file as MLflow's log_table puts it; none if it has no rows."""
    if not (rows := read_rows(path)):
        return None
    columns = list(rows[0])
    data = [[_number_or_text(row[column]) for column in columns] for row in rows]
    return {"columns": list(map(readable, columns)), "data": data}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return readable(text)


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings, with names such as ``recipe.lr``."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def named(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """With names that MLflow takes; one that would be there twice gets a number."""
    found: dict[str, Any] = {}
    for name, value in items:
        # in its alphabet for parameters and metrics, and no path that means another
        name = re.sub(r"[^\w.\- :/]|\.{2,}", "_", name)[:240]
        name = "/".join(part for part in name.split("/") if part not in ("", ".")) or "_"
        found[f"{name}_{len(found)}" if name in found else name] = value
    return found


def read_text(path: Path) -> str:
    """Whatever the locale; names of files need not be UTF-8."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def parsed(path: Path, line: str | None = None) -> Any:
    """The JSON of a file, or of one of its lines.

    :raises InputError: naming the file, if it is none
    """
    try:
        return json.loads(read_text(path) if line is None else line)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file; none if it is not there."""
    return list(csv.DictReader(io.StringIO(read_text(path)))) if path.is_file() else []


def readable(text: str) -> str:
    """Text for MLflow, whose stores take UTF-8 only; other bytes, as of a file's name, in hex."""
    return re.sub("[\ud800-\udfff]", lambda found: f"_{ord(found[0]) & 0x3FF:02x}_", text)


@contextmanager
def called(file: Path, name: str) -> Iterator[Path]:
    """A file under a name of its own."""
    if file.name == name:
        yield file
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / name
        link.symlink_to(file)
        yield link
