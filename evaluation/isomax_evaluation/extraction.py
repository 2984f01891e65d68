"""One pass over a loader: logits, features and the scores of detectors that need the images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pytorch_ood.api import Detector, FeaturesDetector, LogitsDetector
from torch import Tensor
from torch.utils.data import DataLoader

from isomax_adapters.pytorch_ood import Parts


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a set of images, in order, on the CPU."""

    logits: Tensor  #: :math:`N \\times C`
    features: Tensor  #: :math:`N \\times D`
    labels: Tensor  #: :math:`N`; OOD < 0
    scores: dict[str, Tensor]  #: of the detectors that were run on the images themselves


def extract(
    parts: Parts,
    loader: DataLoader,
    on_images: Mapping[str, Detector] | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Outputs:
    """Run the model once over a loader.

    Every image is decoded once. Detectors in ``on_images`` (those that need gradients) run on the
    same batches.

    :param parts: a model in evaluation mode
    :param loader: yields (images, labels)
    :param on_images: detectors that score images rather than logits or features
    :param advance: called with the number of images done since the last call
    """
    detectors = on_images or {}
    device = next(parts.model.parameters()).device
    logits, features, labels = [], [], []
    scores: dict[str, list[Tensor]] = {name: [] for name in detectors}
    for images, targets in loader:
        images = images.to(device)
        with torch.no_grad():
            batch_logits, batch_features = parts.logits_and_features(images)
        logits.append(batch_logits.float().cpu())
        features.append(batch_features.float().cpu())
        labels.append(targets)
        for name, detector in detectors.items():
            scores[name].append(detector.predict(images).detach().float().cpu())
        advance(len(targets))
    return Outputs(
        torch.cat(logits),
        torch.cat(features),
        torch.cat(labels),
        {name: torch.cat(parts_of) for name, parts_of in scores.items()},
    )


def needs_images(detector: Detector) -> bool:
    """Whether a detector scores images, and neither logits nor features alone."""
    return not isinstance(detector, (LogitsDetector, FeaturesDetector))


def fit(detector: Detector, training: Outputs) -> None:
    """Fit a detector on what the model gives for training images."""
    if not detector.requires_fit:
        return
    if isinstance(detector, LogitsDetector):
        detector.fit_logits(training.logits, training.labels)
    else:
        detector.fit_features(training.features, training.labels)


@torch.no_grad()
def score(detector: Detector, outputs: Outputs) -> Tensor:
    """Outlier scores of a detector that needs logits or features only."""
    if isinstance(detector, LogitsDetector):
        scores: Tensor = detector.predict_logits(outputs.logits)
    else:
        scores = detector.predict_features(outputs.features)
    return scores.detach().float().cpu()
