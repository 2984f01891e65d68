"""Scores of sets of images, kept under what they depend on; as a table for people."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.cache import Cache
from isomax_evaluation.output.files import file_name
from isomax_evaluation.output.tables import as_they_are, write_table

KEPT_AS = "<f4"  # bytes of an array


@dataclass(frozen=True)
class Scores:
    """Those of one model."""

    cache: Cache
    detectors: Mapping[str, Mapping[str, Any]]  #: name -> what its scores depend on but the images

    def of(self, images: Images) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Scores by detector, float32; and the reason of each detector that gave none. Detectors
        that have not scored the images are in neither."""
        scores, failed, shown = {}, {}, digest(images)
        for name, about in self.detectors.items():
            kept = self.cache.read(_about(about, shown))
            if isinstance(kept, str):
                scores[name] = np.frombuffer(base64.b64decode(kept), KEPT_AS).astype(np.float32)
            elif kept is not None:
                failed[name] = str(kept["failed"])
        return scores, failed

    def missing(self, images: Images) -> list[str]:
        """The detectors that have not scored them."""
        done = set().union(*self.of(images))
        return [name for name in self.detectors if name not in done]

    def keep(self, images: Images, scores: Mapping[str, Tensor], failed: Mapping[str, str]) -> None:
        """Of some detectors; or why there are none."""
        shown = digest(images)
        for name, reason in failed.items():
            self.cache.write(_about(self.detectors[name], shown), {"failed": reason})
        for name, values in scores.items():
            array = values.numpy().astype(KEPT_AS)
            text = base64.b64encode(array.tobytes()).decode()
            self.cache.write(_about(self.detectors[name], shown), text)


def _about(detector: Mapping[str, Any], images: str) -> dict[str, Any]:
    return {"scores": dict(detector), "images": images}


def write_scores(folder: Path, images: Images, scores: Mapping[str, np.ndarray]) -> None:
    """``scores/SET.csv``: a row for each image, a column for each detector."""
    positions = range(len(images))
    table = pd.DataFrame(
        {
            "path": as_they_are(map(images.name_of, positions)),
            "class": [images.class_of(position) for position in positions],
            **scores,
        }
    )
    write_table(scores_path(folder, images.name), table)


def scores_path(folder: Path, name: str) -> Path:
    """Where the table of a set is, in the folder of a model."""
    return folder / "scores" / f"{file_name(name)}.csv"
