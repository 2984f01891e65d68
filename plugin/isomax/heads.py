r"""Classifier heads that replace the last ``nn.Linear`` of a network.

A head maps features :math:`B \times D` (or :math:`B \times D \times H \times W`) to logits
:math:`B \times C` (:math:`B \times C \times H \times W`). It has no bias, no margin and no
hyperparameter.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from isomax import functional
from isomax.functional import ENTROPIC_SCALE


class DistanceHead(nn.Module):
    """A prototype for each class, and all that is known of a kind of head.

    A head of one's own is a subclass: its name, prefix and score, :meth:`logits`,
    :meth:`reset_parameters`, and what differs from the defaults here.
    """

    name: ClassVar[str]  #: what ``attach`` and ``isomax train --loss`` call it
    prefix: ClassVar[str]  #: of its models' names in timm's registry
    score: ClassVar[str]  #: that its paper pairs with it, a name in ``functional.SCORES``
    learns_distance_scale: ClassVar[bool] = False
    #: whether the lengths of features and prototypes do not matter, so that zero is no prototype
    compares_directions: ClassVar[bool] = False
    #: whether training on a pretrained backbone is best begun at the class means; else at zero
    starts_at_means: ClassVar[bool] = False
    rate: ClassVar[float] = 0.05  #: learning rate of the head alone, :func:`isomax.fit_head`
    #: epochs of a pretrained network's head alone, before the whole is trained
    head_epochs: ClassVar[int] = 20
    #: factor of the learning rate of a pretrained network's head, when the whole is trained
    rate_factor: ClassVar[float] = 1.0

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        drop_in: bool = False,
        entropic_scale: float = ENTROPIC_SCALE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        r"""
        :param in_features: width :math:`D` of the features
        :param num_classes: number of classes :math:`C`
        :param drop_in: multiply the logits by the entropic scale while ``self.training``, so that
            plain cross-entropy (any training script's) is the IsoMax loss. Without it, train
            with :class:`~isomax.IsoMaxLoss`, which brings the scale itself.
        :param entropic_scale: :math:`E_s`, used in drop-in mode only
        :param device: where the parameters are made, as in ``nn.Linear``
        :param dtype: type of the parameters, as in ``nn.Linear``
        :raises ValueError: if a size is not positive
        """
        super().__init__()
        for name, size in (("in_features", in_features), ("num_classes", num_classes)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        self.in_features = in_features
        self.num_classes = num_classes
        self.drop_in = drop_in
        self.entropic_scale = entropic_scale
        self.prototypes = nn.Parameter(
            torch.empty(num_classes, in_features, device=device, dtype=dtype)
        )
        if self.learns_distance_scale:
            # of shape [1], not []: FSDP shards parameters along a dimension
            self.distance_scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the parameters to where the paper starts training from."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """The logits at inference, whatever the mode."""
        raise NotImplementedError

    def largest_distance(self) -> float:
        r""":math:`b`, if all logits lie in :math:`[-b, 0]`; infinite where they have no bound."""
        return math.inf

    def largest_difference(self) -> float:
        """By how much two logits of a sample can differ; infinite where there is no bound."""
        return math.inf

    @torch.no_grad()
    def put_at(self, prototypes: Tensor) -> None:
        r"""Set the prototypes, :math:`C \times D`, and the distance scale, if there is one, to
        one."""
        self.prototypes.copy_(prototypes)
        if self.learns_distance_scale:
            self.distance_scale.fill_(1)

    def forward(self, features: Tensor) -> Tensor:
        r"""
        :param features: :math:`B \times D`, feature maps :math:`B \times D \times H \times W`, or
            tokens :math:`B \times N \times D` as ``nn.Linear`` takes them
        :return: logits :math:`B \times C` (:math:`B \times C \times H \times W`,
            :math:`B \times N \times C`), at most zero; at least float32
        :raises ValueError: if rank or width do not fit, or features are NaN (CPU only)
        """
        logits = self.logits(features)
        return self.entropic_scale * logits if self.drop_in and self.training else logits

    @property
    def out_features(self) -> int:
        """Number of classes, by the name that ``nn.Linear`` has for it."""
        return self.num_classes

    @property
    def weight(self) -> Tensor:
        """The prototypes, by the name that a linear classifier has for its :math:`C \\times D`."""
        return self.prototypes

    @property
    def bias(self) -> Tensor:
        """Zeros, :math:`C`, for code that takes a bias for granted; what it writes is lost."""
        return torch.zeros_like(self.prototypes[:, 0])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"drop_in={self.drop_in}"
        )


class IsoMaxHead(DistanceHead):
    r"""The head of IsoMax: minus the Euclidean distance to each prototype.

    .. math:: z_k = -\lVert f - p_k \rVert_2

    The prototypes :math:`p_k` start at zero, so that training starts from uniform posteriors.

    Source: "Entropic Out-of-Distribution Detection", https://arxiv.org/abs/2006.04005.

    >>> head = IsoMaxHead(in_features=512, num_classes=10)
    >>> head(torch.randn(4, 512)).shape
    torch.Size([4, 10])
    """

    name = "isomax"
    prefix = "isomax_"
    score = "entropic_score"

    def reset_parameters(self) -> None:
        """Set the prototypes to zero."""
        nn.init.zeros_(self.prototypes)

    def logits(self, features: Tensor) -> Tensor:
        return -functional.isomax_distances(features, self.prototypes)


class IsoMaxPlusHead(DistanceHead):
    r"""The head of IsoMax+: minus the scaled distance between directions.

    .. math:: z_k = -|s| \, \Bigl\lVert \frac{f}{\lVert f \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    The prototypes start at :math:`\mathcal{N}(0, 1)`, the learned scale :math:`s` at one.

    Source: "Enhanced Isotropy Maximization Loss", https://arxiv.org/abs/2105.14399.
    """

    name = "isomax+"
    prefix = "isomaxplus_"
    score = "minimum_distance_score"
    learns_distance_scale = True
    compares_directions = True
    starts_at_means = True
    rate = 0.005
    # at the backbone's own rate its distance scale hardly moves: 81.3 against 82.5% on CIFAR-10,
    # where a factor of ten changes the others by less than half a point; head epochs first cost it
    # 0.3 and 1.0 points (evaluation/benchmarks/RESULTS.md)
    head_epochs = 0
    rate_factor = 10.0

    def reset_parameters(self) -> None:
        """Draw the prototypes from a standard normal; set the distance scale to one."""
        nn.init.normal_(self.prototypes)
        nn.init.ones_(self.distance_scale)

    def logits(self, features: Tensor) -> Tensor:
        return -functional.isomaxplus_distances(features, self.prototypes, self.distance_scale)

    def largest_distance(self) -> float:
        r""":math:`2 |s|`."""
        return 2 * abs(float(self.distance_scale.detach()))

    def largest_difference(self) -> float:
        r""":math:`2 |s|`."""
        return self.largest_distance()


class DisMaxHead(IsoMaxPlusHead):
    r"""The head of DisMax: each distance plus the mean of all of them, negated.

    .. math:: z_k = -\Bigl(d_k + \frac{1}{C} \sum_j d_j\Bigr), \quad
        d_k = \frac{|s|}{\sqrt 2} \, \Bigl\lVert \frac{f}{\lVert f \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    Prototypes and scale start as in :class:`IsoMaxPlusHead`.

    Source: "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874.
    """

    name = "dismax"
    prefix = "dismax_"
    score = "max_mean_logit_entropy_score"
    # with head epochs first 83.1 against 81.6% of the validation images on CIFAR-10, 85.0 against
    # 83.8% on 20 classes of Tiny ImageNet, three seeds each
    head_epochs = 20
    rate_factor = 1.0

    def logits(self, features: Tensor) -> Tensor:
        return functional.dismax_logits(
            functional.dismax_distances(features, self.prototypes, self.distance_scale)
        )

    def largest_distance(self) -> float:
        r""":math:`2 \sqrt 2 |s|`: the largest of the distances and the mean of them all."""
        return 2 * self.largest_difference()

    def largest_difference(self) -> float:
        r""":math:`\sqrt 2 |s|`: the mean is in all logits alike."""
        return math.sqrt(2) * abs(float(self.distance_scale.detach()))


HEADS: dict[str, type[DistanceHead]] = {
    head.name: head for head in (IsoMaxHead, IsoMaxPlusHead, DisMaxHead)
}
"""The heads by name."""
