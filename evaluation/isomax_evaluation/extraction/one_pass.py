"""One pass over images feeds every detector: logits, features, feature maps or images."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector
from torch import Tensor

from isomax_adapters.pytorch_ood import Parts
from isomax_evaluation.extraction.feature_maps import MapsOnDisk, fit_on_maps
from isomax_evaluation.extraction.feeding import Feeding
from isomax_evaluation.output.errors import one_line

_SCRATCH = "feature-maps-"


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a set of images, in order, on the CPU."""

    logits: Tensor  #: :math:`N \\times C`
    features: Tensor  #: :math:`N \\times D`
    labels: Tensor  #: :math:`N`; OOD < 0


def fit(
    parts: Parts,
    detectors: Mapping[str, Detector],
    loader: Iterable[tuple[Tensor, Tensor]],
    scratch: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, str]:
    """Fit all detectors that need it, in one pass over the training images.

    Logits and pooled features are kept in memory, feature maps in a temporary file; detectors that
    read images get each batch as it comes. The scores are those of ``detector.fit(loader)``.

    :param parts: a model in evaluation mode
    :param detectors: by name
    :param loader: yields (images, labels); images with labels below 0 are left out
    :param scratch: folder for the temporary file; the system's own if not given
    :param advance: called with the number of images done since the last call
    :return: the detectors that could not be fitted, with the reason
    """
    unfitted = {name: detector for name, detector in detectors.items() if detector.requires_fit}
    if not unfitted:
        return {}
    on_maps = {n: d for n, d in unfitted.items() if isinstance(d, FeatureMapsDetector)}
    on_outputs = {n: d for n, d in unfitted.items() if n not in on_maps and _takes_outputs(d)}
    on_images = {n: d for n, d in unfitted.items() if n not in on_maps and n not in on_outputs}
    feedings = {name: Feeding(detector) for name, detector in on_images.items()}
    gathered = _Gathered()
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=scratch) as folder:
        maps = MapsOnDisk(Path(folder) / "maps")
        for batch, labels in loader:
            known = labels >= 0
            images = batch[known].to(parts.device)
            if len(images):
                logits, features, *found = _run(parts, images, bool(on_maps))
                gathered.add(logits, features, labels[known])
                if on_maps:
                    maps.append(found[0])
                for feeding in feedings.values():
                    feeding.give((images, labels[known]))
            advance(len(labels))
        failed = {n: feeding.finish() for n, feeding in feedings.items()}
        training = gathered.outputs()
        for name, detector in on_outputs.items():
            failed[name] = _attempt(partial(_fit_outputs, detector, training))
        for name, detector in on_maps.items():
            failed[name] = _attempt(partial(fit_on_maps, detector, maps, training.labels))
    return {name: reason for name, reason in failed.items() if reason is not None}


def remove_scratch(scratch: Path) -> None:
    """Remove the temporary files that killed calls of :func:`fit` have left behind."""
    for folder in scratch.glob(f"{_SCRATCH}*"):
        shutil.rmtree(folder)


def score(
    parts: Parts,
    detectors: Mapping[str, Detector],
    loader: Iterable[tuple[Tensor, Tensor]],
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Outputs, dict[str, Tensor], dict[str, str]]:
    """Score images with all detectors, in one pass.

    Every image is decoded once, and classified once for all detectors that work on logits,
    features or feature maps; those that need the images (for gradients) run on the same batches.

    :param parts: a model in evaluation mode
    :param detectors: fitted ones, by name
    :param loader: yields (images, labels)
    :param advance: called with the number of images done since the last call
    :return: the model's outputs; scores of each detector, larger means more likely OOD; the
        detectors that raised an error or gave scores that are not numbers, with the reason
    """
    on_maps = {n: d for n, d in detectors.items() if isinstance(d, FeatureMapsDetector)}
    on_outputs = {n: d for n, d in detectors.items() if _scores_outputs(d)}
    on_images = {n: d for n, d in detectors.items() if n not in on_maps and n not in on_outputs}
    scores: dict[str, list[Tensor]] = {name: [] for name in detectors}
    failed: dict[str, str] = {}
    gathered = _Gathered()

    def keep(name: str, predict: Callable[[Any], Tensor], given: Any) -> None:
        if name not in failed and (
            reason := _attempt(lambda: scores[name].append(predict(given).detach().float().cpu()))
        ):
            failed[name] = reason

    for batch, labels in loader:
        images = batch.to(parts.device)
        logits, features, *maps = _run(parts, images, bool(on_maps))
        gathered.add(logits, features, labels)
        for name, detector in on_maps.items():
            keep(name, detector.predict_feature_maps, maps[0])
        for name, detector in on_images.items():
            # no no_grad() here: these switch gradients on and off themselves
            keep(name, detector.predict, images)
        advance(len(labels))
    found = gathered.outputs()
    with torch.no_grad():
        for name, detector in on_outputs.items():
            keep(name, partial(_score_outputs, detector), found)
    together = {
        name: torch.cat(parts_of) for name, parts_of in scores.items() if name not in failed
    }
    for name, values in together.items():
        if bad := int((~values.isfinite()).sum()):
            failed[name] = f"{bad} of {len(values)} scores are NaN or infinite"
    return found, {n: values for n, values in together.items() if n not in failed}, failed


class _Gathered:
    """Outputs of batches, put together at the end."""

    def __init__(self) -> None:
        self.parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        for part, tensor in zip(
            self.parts, (logits.float(), features.float(), labels), strict=True
        ):
            part.append(tensor.cpu())

    def outputs(self) -> Outputs:
        return Outputs(*(torch.cat(part) for part in self.parts))


@torch.no_grad()
def _run(parts: Parts, images: Tensor, maps: bool) -> tuple[Tensor, ...]:
    return parts.logits_features_and_maps(images) if maps else parts.logits_and_features(images)


def _takes_outputs(detector: Detector) -> bool:
    # MahalanobisODIN is fitted on features, and scores images
    return isinstance(detector, LogitsDetector) or hasattr(detector, "fit_features")


def _scores_outputs(detector: Detector) -> bool:
    return isinstance(detector, (LogitsDetector, FeaturesDetector))


def _fit_outputs(detector: Any, training: Outputs) -> None:
    if isinstance(detector, LogitsDetector):
        detector.fit_logits(training.logits, training.labels)
    else:
        detector.fit_features(training.features, training.labels)


def _score_outputs(detector: Any, outputs: Outputs) -> Tensor:
    scores: Tensor = (
        detector.predict_logits(outputs.logits)
        if isinstance(detector, LogitsDetector)
        else detector.predict_features(outputs.features)
    )
    return scores


def _attempt(function: Callable[[], Any]) -> str | None:
    """Run it; the reason why it failed, if it did."""
    try:
        function()
    except Exception as error:  # detectors raise whatever they please; the table names it
        return one_line(error)
    return None
