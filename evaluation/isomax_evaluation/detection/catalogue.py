"""Every detector there is, and what a user chooses it by."""

import pandas as pd
import timm
from pytorch_ood.api import Detector

import isomax_adapters.timm  # noqa: F401  # registers the models
from isomax.heads import HEADS
from isomax_adapters.onnx.scorers import why_not_exported
from isomax_adapters.pytorch_ood import Parts, detectors_for, kind_of, wiring_notes

#: models that most can work on, then one for each of the scores of our heads
_MODELS = ("test_resnet", *(f"{head.prefix}test_resnet" for head in HEADS.values()))
COLUMNS = ("detector", "scores", "in a file", "what it is given", "hyperparameters", "written in")


def catalogue() -> pd.DataFrame:
    """A row for each: what it scores, whether a file can hold it, what it is given, hyperparameters
    with their defaults, and where it is written; blank what takes another model to be told."""
    made_of = dict[str, Detector]()
    for name in _MODELS:
        parts = Parts(timm.create_model(name, num_classes=2))
        made_of = detectors_for(parts) | made_of
    rows = []
    for note in wiring_notes():
        made = made_of.get(note.detector)
        scores = file = values = ""
        if made is not None:
            scores = (kind_of(made) or "image").replace("_", " ")
            file = "no" if why_not_exported(note.detector) else "yes"
            values = ", ".join(f"{k}={v}" for k, v in made.get_hyperparameters().items())
        rows.append((note.detector, scores, file, note.how, values, note.source))
    return pd.DataFrame(rows, columns=list(COLUMNS))
