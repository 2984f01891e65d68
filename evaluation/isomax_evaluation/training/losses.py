"""The losses that can be trained and compared: a head and the criterion that goes with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from isomax import FractionalProbabilityLoss, IsoMaxLoss
from isomax.detectors import DETECTORS
from isomax.heads import HEADS
from isomax_evaluation.data.images import Images


@dataclass(frozen=True)
class Loss:
    """A head and the criterion it is trained with."""

    head: str | None  #: a name in ``isomax.heads.HEADS``; ``None`` keeps the linear layer
    criterion: Callable[..., nn.Module]  #: takes ``reduction``
    mosaic: bool = False  #: DisMax's fractional probability regularisation

    @property
    def score(self) -> str:
        """The detector that its paper pairs with it."""
        if self.head is None:
            return "MaxSoftmax"
        score = HEADS[self.head].score
        return DETECTORS[score].__name__ if score in DETECTORS else "EnergyBased"

    @property
    def head_first(self) -> int:
        """Epochs of a pretrained network's head alone, before the whole is trained."""
        return ALONE if self.head is None else HEADS[self.head].head_epochs

    @property
    def head_lr(self) -> float:
        """Factor of the learning rate of a pretrained network's head, when the whole is trained."""
        return 1.0 if self.head is None else HEADS[self.head].rate_factor


ALONE = 20  #: epochs of a head that is all that is trained
LOSSES = {
    "softmax": Loss(None, nn.CrossEntropyLoss),
    **{name: Loss(name, IsoMaxLoss) for name in HEADS},
    "dismax+fpr": Loss("dismax", FractionalProbabilityLoss, mosaic=True),
}


class ClassWeighted(nn.Module):
    r"""A criterion in which every class of the training images counts alike.

    .. math:: \mathcal{L} = \frac{1}{B} \sum_i w_{y_i} \ell_i, \quad w_k = \frac{N}{C \, n_k}

    with :math:`n_k` of the :math:`N` training images of class :math:`k`: scikit-learn's
    ``balanced``, whose mean over the training images is one. Of class probabilities (mixup) the
    mean of the weights is taken.
    """

    def __init__(self, criterion: nn.Module, labels: np.ndarray, num_classes: int) -> None:
        """
        :param criterion: gives the loss of each image
        :param labels: of the training images; every class occurs
        """
        super().__init__()
        self.criterion = criterion
        weights = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """
        :param logits: :math:`B \\times C`
        :param target: labels :math:`B`, or class probabilities :math:`B \\times C`
        :return: a scalar
        """
        weights: Tensor = self.weights  # type: ignore[assignment]
        each = target @ weights if target.is_floating_point() else weights[target]
        return (each * self.criterion(logits, target)).mean()


def criterion_of(loss: Loss, class_weights: bool, images: Images) -> nn.Module:
    """What a model is trained with on some images."""
    if not class_weights:
        return loss.criterion()
    each = loss.criterion(reduction="none")
    return ClassWeighted(each, images.labels, len(images.class_names))
