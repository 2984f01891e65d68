r"""Classifier heads that replace the last ``nn.Linear`` of a network.

A head maps features :math:`B \times D` (or :math:`B \times D \times H \times W`) to logits
:math:`B \times C` (:math:`B \times C \times H \times W`). It has no bias, no margin and no
hyperparameter.
"""

import torch
from torch import Tensor, nn

from isomax import functional
from isomax.functional import ENTROPIC_SCALE


class _DistanceHead(nn.Module):
    """Prototypes and the entropic scale; the logits are the subclass's."""

    learns_distance_scale = False
    score: str  #: the score that the paper pairs with the head, a name in ``functional.SCORES``

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


class IsoMaxHead(_DistanceHead):
    r"""The head of IsoMax: minus the Euclidean distance to each prototype.

    .. math:: z_k = -\lVert f - p_k \rVert_2

    The prototypes :math:`p_k` start at zero, so that training starts from uniform posteriors.

    Source: "Entropic Out-of-Distribution Detection", https://arxiv.org/abs/2006.04005.

    >>> head = IsoMaxHead(in_features=512, num_classes=10)
    >>> head(torch.randn(4, 512)).shape
    torch.Size([4, 10])
    """

    score = "entropic_score"

    def reset_parameters(self) -> None:
        """Set the prototypes to zero."""
        nn.init.zeros_(self.prototypes)

    def logits(self, features: Tensor) -> Tensor:
        return -functional.isomax_distances(features, self.prototypes)


class IsoMaxPlusHead(_DistanceHead):
    r"""The head of IsoMax+: minus the scaled distance between directions.

    .. math:: z_k = -|s| \, \Bigl\lVert \frac{f}{\lVert f \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    The prototypes start at :math:`\mathcal{N}(0, 1)`, the learned scale :math:`s` at one.

    Source: "Enhanced Isotropy Maximization Loss", https://arxiv.org/abs/2105.14399.
    """

    learns_distance_scale = True
    score = "minimum_distance_score"

    def reset_parameters(self) -> None:
        """Draw the prototypes from a standard normal; set the distance scale to one."""
        nn.init.normal_(self.prototypes)
        nn.init.ones_(self.distance_scale)

    def logits(self, features: Tensor) -> Tensor:
        return -functional.isomaxplus_distances(features, self.prototypes, self.distance_scale)


class DisMaxHead(IsoMaxPlusHead):
    r"""The head of DisMax: each distance plus the mean of all of them, negated.

    .. math:: z_k = -\Bigl(d_k + \frac{1}{C} \sum_j d_j\Bigr), \quad
        d_k = \frac{|s|}{\sqrt 2} \, \Bigl\lVert \frac{f}{\lVert f \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    Prototypes and scale start as in :class:`IsoMaxPlusHead`.

    Source: "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874.
    """

    score = "max_mean_logit_entropy_score"

    def logits(self, features: Tensor) -> Tensor:
        return functional.dismax_logits(
            functional.dismax_distances(features, self.prototypes, self.distance_scale)
        )
