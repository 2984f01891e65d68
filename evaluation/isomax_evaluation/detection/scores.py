"""Scores of a set of images on disk: a row for each image, a column for each detector."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from isomax_evaluation.data.images import Images
from isomax_evaluation.output.files import file_name, read_json, write_json
from isomax_evaluation.output.tables import as_they_are, read_table, write_table

IMAGE = ("path", "class")  # the columns that say which image a row is of


def scores_path(folder: Path, name: str) -> Path:
    """Where the scores of a set are, in the folder of a model."""
    return folder / "scores" / f"{file_name(name)}.csv"


def read_scores(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Scores of a set by detector, float32; empty if it has not been scored."""
    path = scores_path(folder, name)
    if not path.is_file():
        return {}
    table = read_table(path, dtype=dict.fromkeys(IMAGE, object), float_precision="round_trip")
    return {
        str(detector): table[detector].to_numpy(np.float32)
        for detector in table.columns
        if detector not in IMAGE
    }


def read_failed(folder: Path, name: str) -> dict[str, str]:
    """The detectors that gave a set no scores, with the reason."""
    path = scores_path(folder, name).with_suffix(".json")
    failed: dict[str, str] = read_json(path)["failed"] if path.is_file() else {}
    return failed


def add_scores(
    folder: Path, images: Images, scores: Mapping[str, Tensor], failed: Mapping[str, str]
) -> None:
    """Put scores beside those that are there."""
    path = scores_path(folder, images.name)
    columns = read_scores(folder, images.name) | {n: v.numpy() for n, v in scores.items()}
    positions = range(len(images))
    table = pd.DataFrame(
        {
            "path": as_they_are(map(images.name_of, positions)),
            "class": [images.class_of(position) for position in positions],
            **columns,
        }
    )
    write_json(
        path.with_suffix(".json"), {"failed": read_failed(folder, images.name) | dict(failed)}
    )
    write_table(path, table)  # the last one: it says that they are done
