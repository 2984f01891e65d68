"""A model as detection sees it, however it came to be."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm.data
import torch
from pytorch_ood.api import Detector
from torch import Tensor, nn

from isomax.calibration import Calibration
from isomax_adapters.pytorch_ood import Digests, Parts, digests_of_weights
from isomax_adapters.runtime.decoding import RGB, Decoding
from isomax_evaluation.detection.scoring import score_outputs, scores_outputs
from isomax_evaluation.extraction.store import Outputs


@dataclass(frozen=True)
class Model:
    """A trained network, in evaluation mode, that detectors work on."""

    name: str  #: of its rows in the table
    seed: int  #: tells it from others of its name
    parts: Parts
    class_names: tuple[str, ...]
    #: as ``timm.data.create_transform`` takes it; ``None`` if images come as finished tensors
    preprocessing: Mapping[str, Any] | None
    decoding: Decoding = RGB  #: how images are read for it
    calibration: Calibration | None = None  #: its own threshold, if it has one
    detector: Detector | None = None  #: fitted; what the threshold is for, if not for its logits

    @cached_property
    def transform(self) -> Any:
        """From an image to what the network takes."""
        if self.preprocessing is None:
            return _as_it_is
        return timm.data.create_transform(**self.preprocessing)

    @cached_property
    def digests(self) -> Digests:
        """Of the network, whole and without its heads."""
        return digests_of_weights(self.parts.model, self.parts.classifiers)

    @property
    def weights(self) -> str:
        """Digest of the network."""
        return self.digests.whole

    def own_scores(self, outputs: Outputs) -> Tensor | None:
        """The scores that its threshold is for; ``None`` if it has none, or if they are of feature
        maps, which are not kept."""
        if self.calibration is None:
            return None
        if self.detector is None:
            return self.calibration.score_of(outputs.logits)
        if not scores_outputs(self.detector):
            return None
        with torch.no_grad():
            return score_outputs(self.detector, outputs).float().cpu()

    def softmax_twin(self) -> nn.Module:
        """The same network with a linear classifier: what plain classification costs.

        Its classifier's weights are fresh; they do not change what it costs.
        """
        if self.parts.head == "softmax":
            network: nn.Module = self.parts.model
            return network
        twin: Any = copy.deepcopy(self.parts.model)
        type(twin).reset_classifier(twin, self.parts.num_classes)
        return twin.to(self.parts.device).eval()


def _as_it_is(image: Any) -> Any:
    return image
