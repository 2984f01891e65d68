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
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from isomax_adapters.runtime.errors import InputError

# whatever the locale; names of files need not be UTF-8
TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape"}
SYSTEM_METRICS = "system.jsonl"
ROWS = ("metrics.jsonl", SYSTEM_METRICS)
RESULTS = "results.csv"
TABLES = (
    *(RESULTS, "intervals.csv", "costs.csv", "errors.csv", "left_out.csv"),
    *("hyperparameters.csv", "classes.csv", "deployable.csv"),
)
ARTIFACTS = (
    "report.html",
    *TABLES,
    "README.md",
    "hyperparameters.json",
    "predictions.csv",
    "splits.csv",
    "summary.json",
    "settings.json",
    "plots",
    "model",
    "chosen.onnx",
    "chosen.json",
)


def dataset_input(content: dict[str, Any]) -> DatasetInput:
    """Of an entry of provenance.json."""
    profile = {"num_rows": content["size"], "num_classes": content["classes"]}
    dataset = Dataset(
        name=readable(content["name"]),
        digest=content["digest"],
        source_type="local",
        source=json.dumps({"uri": content["source"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, content["split"])])


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
        taken = _mlflow_name(name)
        found[f"{taken}_{len(found)}" if taken in found else taken] = value
    return found


def _mlflow_name(name: str) -> str:
    """In MLflow's alphabet for parameters and metrics, and no path that means another."""
    name = re.sub(r"[^\w.\- :/]|\.{2,}", "_", name)[:240]
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "_"


def parsed(path: Path, line: str | None = None) -> Any:
    """The JSON of a file, or of one of its lines.

    :raises InputError: naming the file, if it is none
    """
    try:
        return json.loads(path.read_text(**TEXT) if line is None else line)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def read_text(path: Path) -> str | None:
    """Of a file, if it is there."""
    return path.read_text(**TEXT) if path.is_file() else None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file; none if it is not there."""
    return list(csv.DictReader(io.StringIO(read_text(path) or "")))


def number_or_text(text: str) -> float | str:
    """A cell of a CSV file."""
    try:
        return float(text)
    except ValueError:
        return readable(text)


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
