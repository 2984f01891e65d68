"""The losses that can be trained and compared: a head and the criterion that goes with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from isomax import FractionalProbabilityLoss, IsoMaxLoss
from isomax_evaluation.data.images import Images


@dataclass(frozen=True)
class Loss:
    """A head and the criterion it is trained with."""

    head: str | None  #: a name in ``isomax_adapters.timm.HEADS``; ``None`` keeps the linear layer
    criterion: Callable[..., nn.Module]  #: takes ``reduction``
    score: str  #: the detector that its paper pairs with it
    mosaic: bool = False  #: DisMax's fractional probability regularisation
    #: epochs of a pretrained network's head alone, before the whole is trained
    head_first: int = 0
    #: factor of the learning rate of a pretrained network's head, when the whole is trained
    head_lr: float = 1.0


LOSSES = {
    "softmax": Loss(None, nn.CrossEntropyLoss, "MaxSoftmax", head_first=20),
    "isomax": Loss("isomax", IsoMaxLoss, "EntropicScore", head_first=20),
    # at the backbone's own rate its distance scale hardly moves: 81.3 against 82.5% on CIFAR-10,
    # where a factor of ten changes the others by less than half a point; head epochs first cost it
    # 0.3 and 1.0 points (RESULTS.md)
    "isomax+": Loss("isomax+", IsoMaxLoss, "MinimumDistanceScore", head_lr=10.0),
    # with head epochs first 83.1 against 81.6% of the validation images on CIFAR-10, 85.0 against
    # 83.8% on 20 classes of Tiny ImageNet, three seeds each
    "dismax": Loss("dismax", IsoMaxLoss, "MaxMeanLogitEntropyScore", head_first=20),
    "dismax+fpr": Loss(
        "dismax", FractionalProbabilityLoss, "MaxMeanLogitEntropyScore", True, head_first=20
    ),
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
