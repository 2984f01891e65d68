"""What a model says of each test image, and what its own threshold makes of it."""

import pandas as pd
import torch

from isomax_evaluation.data.images import Images
from isomax_evaluation.detection.models import Model
from isomax_evaluation.extraction.store import Outputs
from isomax_evaluation.output.tables import as_they_are


@torch.no_grad()
def predictions(model: Model, images: Images, outputs: Outputs) -> pd.DataFrame:
    """Rows of ``predictions.csv``, one for each image of a set, so that "which were rejected" is a
    filter: class and predicted class, confidence (the largest probability, at the model's
    temperature if it has one), and score and verdict of the model's own calibrated score, which are
    empty where it has none."""
    calibration = model.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    confidence, predicted = (outputs.logits / temperature).softmax(dim=1).max(dim=1)
    table = pd.DataFrame(
        {
            "set": images.name,
            "path": as_they_are(map(images.name_of, range(len(images)))),
            "class": [images.class_of(position) for position in range(len(images))],
            "predicted": [model.class_names[label] for label in predicted.tolist()],
            "confidence": confidence.numpy(),
        }
    )
    scores = model.own_scores(outputs)
    table["score"] = None if scores is None else scores.numpy()
    table["is_ood"] = None
    if calibration is not None and scores is not None:
        table["is_ood"] = calibration.rejects(scores).numpy()
    return table
