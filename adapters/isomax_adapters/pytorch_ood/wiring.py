"""All that is known of a detector, in one place: how it is built of a model, fitted, kept, and put
into a file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector
from torch import Tensor, nn

from isomax.moments import Statistics
from isomax_adapters.pytorch_ood.parts import Parts

CHUNK = 16_384  # images at a time

KINDS: dict[type, str] = {
    LogitsDetector: "logits",
    FeaturesDetector: "features",
    FeatureMapsDetector: "feature_maps",
}


class Outputs(Protocol):
    """What a model gives for the images that a detector is fitted on; may be memory-mapped."""

    @property
    def logits(self) -> Tensor: ...

    @property
    def features(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...  # all of them at least 0

    @property
    def statistics(self) -> Statistics: ...  # of the features; found once for all detectors


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, some at a time."""
    for start in range(0, len(tensors[0]), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in tensors)


def fit_as_it_is(detector: Any, outputs: Outputs) -> None:
    """By the detector's own method."""
    if isinstance(detector, LogitsDetector):
        detector.fit_logits(outputs.logits, outputs.labels)
    elif hasattr(detector, "fit_statistics"):
        detector.fit_statistics(outputs.statistics)
    else:
        detector.fit_features(outputs.features, outputs.labels)


def fit_maps_at_once(detector: Any, maps: np.ndarray, labels: Tensor) -> None:
    """By the detector's own method, with all feature maps in memory."""
    detector.fit_feature_maps(torch.from_numpy(np.array(maps)), labels)


def put_back(detector: Any, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each as an attribute.

    :return: what belongs to parts of it instead, ``part.key``, by the part
    """
    inner: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        part, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(part, {})[rest] = value
        else:
            setattr(detector, key, value)
    return inner


class AsItIs(nn.Module):
    """What torch can export without more ado."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self._predict: Callable[[Tensor], Tensor] = getattr(
            detector, f"predict_{kind_of(detector)}"
        )

    def forward(self, given: Tensor) -> Tensor:
        return self._predict(given).float()


@dataclass(frozen=True)
class Wiring:
    """A detector on the parts of a model."""

    made: type[Any]
    how: str  #: what it is given, and its settings
    source: str  #: where that is written: the paper, or the code of its authors
    obstacle: Callable[[Parts], str | None] = lambda parts: None  #: why it cannot be built
    build: Callable[[Parts], Detector] | None = None  #: if its class takes more than it scores
    differs: str = ""  #: in what it is not the paper's
    held_out: bool = False  #: the paper fits it on ID images that the model was not trained on

    #: how it is fitted on outputs that do not fit into memory; if not at all, then on a sample
    fit_large: Callable[[Any, Outputs], None] | None = None
    #: how a detector of feature maps is fitted on those that lie on disk, and on their labels
    fit_maps: Callable[[Any, np.ndarray, Tensor], None] = fit_maps_at_once
    #: bytes that it holds for good, of the number of classes and of features, if they are many
    held: Callable[[int, int], int] = lambda classes, width: 0
    doubt: Callable[[Any], str | None] = lambda fitted: None  #: why its scores are worth nothing

    #: what of it is kept: tensors, arrays, what JSON takes, other detectors; what is given by the
    #: model may be among it and is not kept
    state: Callable[[Any], Mapping[str, Any]] = vars
    restore: Callable[[Any, Mapping[str, Any]], Any] = put_back  #: puts some of the state back
    bank: str = ""  #: the part of the state that has a row for each image that it was fitted on

    #: a network from what it scores to the scores, float32, for a file
    network: Callable[[Any], nn.Module] = AsItIs
    no_file: str = ""  #: why it cannot be part of a file, and which can be in its place

    def on(self, parts: Parts) -> Detector:
        """The detector on the parts of a model, not yet fitted."""
        detector: Detector
        if self.build is not None:
            detector = self.build(parts)
        elif issubclass(self.made, FeatureMapsDetector):
            detector = self.made(parts.feature_maps, parts.classify_maps)
        else:
            is_of_logits = issubclass(self.made, LogitsDetector)
            detector = self.made(parts.model if is_of_logits else parts.encode)
        return detector.to(parts.device)


def never(made: type[Detector], reason: str, source: str) -> Wiring:
    """One that no model has all parts of."""
    return Wiring(made, f"not built: {reason}", source, lambda parts: reason)


def kind_of(detector: Detector) -> str | None:
    """``logits``, ``features`` or ``feature_maps``: what a detector scores; ``None`` if that is
    the image itself."""
    return next((kind for base, kind in KINDS.items() if isinstance(detector, base)), None)


# -- Obstacles -----------------------------------------------------------------------------------


def needs_weights(parts: Parts) -> str | None:
    if parts.linear:
        return None
    if parts.head != "softmax":
        return "needs the weights of a linear classifier, and the model has a distance head"
    return "needs the weights of one linear classifier, and the model has several"


def needs_one_classifier(parts: Parts) -> str | None:
    return None if len(parts.classifiers) == 1 else "the model has several classifiers"


def needs_std(parts: Parts) -> str | None:
    if len(parts.std) == parts.channels:
        return None
    return (
        f"needs the standard deviation of each channel, and the model's preprocessing has "
        f"{len(parts.std)} for {parts.channels} channels; give Parts(model, std=...)"
    )
