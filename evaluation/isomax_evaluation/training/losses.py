"""The losses that can be trained and compared: a head and the criterion that goes with it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from isomax import FractionalProbabilityLoss, IsoMaxLoss


@dataclass(frozen=True)
class Loss:
    """A head and the criterion it is trained with."""

    head: str | None  #: a name in ``isomax_adapters.timm.HEADS``; ``None`` keeps the linear layer
    criterion: Callable[[], nn.Module]
    score: str  #: the detector that its paper pairs with it
    mosaic: bool = False  #: DisMax's fractional probability regularisation
    #: epochs of a pretrained network's head alone, before the whole is trained
    head_first: int = 0


LOSSES = {
    "softmax": Loss(None, nn.CrossEntropyLoss, "MaxSoftmax", head_first=20),
    "isomax": Loss("isomax", IsoMaxLoss, "EntropicScore", head_first=20),
    "isomax+": Loss("isomax+", IsoMaxLoss, "MinimumDistanceScore"),
    "dismax": Loss("dismax", IsoMaxLoss, "MaxMeanLogitEntropyScore"),
    "dismax+fpr": Loss("dismax", FractionalProbabilityLoss, "MaxMeanLogitEntropyScore", True),
}
