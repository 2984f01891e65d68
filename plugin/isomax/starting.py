r"""Where a head on a pretrained backbone starts: at the class means of its features, or at zero."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isomax.heads import HEADS, DistanceHead
from isomax.moments import Moments, listed

Head = DistanceHead | nn.Linear

SMALLEST_MEAN = 1e-6  # of directions: what is below has come from rounding


def start_head(head: Head, features: Tensor, labels: Tensor) -> bool:
    r"""Set a head to where its training on a pretrained backbone is best begun: at the class means
    (:func:`start_at_means`) if it :attr:`~isomax.DistanceHead.starts_at_means`, as those that
    compare directions do, else at zero (:func:`start_at_zero`), as ``nn.Linear``.

    Parameters and errors as in :func:`start_at_means`.

    :return: whether it is at the class means
    """
    at_means = isinstance(head, DistanceHead) and head.starts_at_means
    if isinstance(head, nn.Linear) or not at_means:
        start_at_zero(head)
    else:
        start_at_means(head, features, labels)
    return at_means


def class_means(
    features: Tensor, labels: Tensor, num_classes: int, normalize: bool = True
) -> Tensor:
    r"""Mean feature of each class.

    .. math:: m_k = \frac{1}{N_k} \sum_{i : y_i = k} \hat f_i, \quad
        \hat f = \frac{f}{\lVert f \rVert_2}

    Summed in float64 on the CPU, a chunk at a time, so that the features may be a memory-mapped
    tensor of any length. An all-zero feature vector has the direction zero.

    :param features: :math:`N \times D`, read once, in order
    :param labels: :math:`N`; samples with labels below 0 are left out
    :param num_classes: :math:`C`
    :param normalize: without it, :math:`\hat f = f`
    :return: :math:`C \times D`, float64, on the CPU
    :raises ValueError: if shapes do not fit, a label is not below C, a class has no sample, or
        features are not finite

    >>> class_means(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0]]), torch.tensor([0, 1, 1]), 2)
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    labels = checked_labels(features, labels, num_classes)
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes)
    if (missing := (counts == 0).nonzero().flatten()).numel():
        raise ValueError(
            f"no sample of class {listed(missing)} among {int(counts.sum())}; a mean takes at "
            f"least one of each of the {num_classes} classes"
        )
    return Moments(features, labels, normalize, "cpu").means


@torch.no_grad()
def start_at_means(head: Head, features: Tensor, labels: Tensor) -> None:
    r"""Set a head to the class means of a backbone's features: a classifier without training.

    - heads that compare directions (:class:`~isomax.IsoMaxPlusHead`, :class:`~isomax.DisMaxHead`):
      prototypes at the means of the normalised features, distance scale 1
    - others (:class:`~isomax.IsoMaxHead`): prototypes at the means of the features as they are,
      since their distances are between these
    - ``nn.Linear``: weights at the directions of the means of the normalised features, bias 0
      (weight imprinting). The class is then that of the largest cosine, as in IsoMax+.

    :param head: one of these, changed in place
    :param features: :math:`N \times D`, may be memory-mapped
    :param labels: :math:`N`; samples with labels below 0 are left out
    :raises ValueError: as :func:`class_means`; or if the normalised features of a class have the
        mean zero, which has no direction
    :raises TypeError: if the head is none of these

    Source: of weight imprinting, Qi, Brown and Lowe, "Low-Shot Learning with Imprinted Weights",
    CVPR 2018, https://arxiv.org/abs/1712.07136; the same for distance heads is of this project.
    """
    put_at_means(head, class_means(features, labels, num_classes_of(head), of_directions(head)))


def of_directions(head: Head) -> bool:
    """Whether the means at which it starts are those of the normalised features."""
    return isinstance(head, nn.Linear) or head.compares_directions


@torch.no_grad()
def put_at_means(head: Head, means: Tensor) -> None:
    r"""Set a head to means that are known already; see :func:`start_at_means`.

    :param head: changed in place
    :param means: :math:`C \times D`, of the features, or of their directions if the head is
        :func:`of_directions`
    :raises ValueError: if a mean that should have a direction is zero
    """
    if of_directions(head) and (lost := (means.norm(dim=1) < SMALLEST_MEAN).nonzero()).numel():
        raise ValueError(
            f"the features of class {listed(lost.flatten())} are all zero or cancel out, so that "
            "their mean has no direction; look at the model that gave them, or start at the "
            "paper's own"
        )
    if isinstance(head, DistanceHead):
        head.put_at(means)
        return
    head.weight.copy_(F.normalize(means, dim=1))
    if head.bias is not None:
        head.bias.zero_()


@torch.no_grad()
def start_at_zero(head: Head) -> None:
    r"""Set the weights of ``nn.Linear``, or the prototypes of a head such as
    :class:`~isomax.IsoMaxHead`, to zero.

    All posteriors are then :math:`1 / C`, the first loss is :math:`\log C`, and the first gradients
    spare the backbone.

    :param head: changed in place
    :raises TypeError: if the head is another layer, or compares directions: zero has none
    """
    num_classes_of(head)
    if isinstance(head, nn.Linear):
        for parameter in head.parameters():
            parameter.zero_()
    elif head.compares_directions:
        raise TypeError(
            f"{type(head).__name__} cannot start at zero, which has no direction; use "
            "start_at_means"
        )
    else:
        head.put_at(torch.zeros_like(head.prototypes))


def checked_labels(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The labels of features, on the CPU.

    :raises ValueError: if shapes do not fit, or a label is not below the number of classes
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features have shape {tuple(features.shape)}, labels {tuple(labels.shape)}; expected "
            "[N, D] and [N]"
        )
    labels = labels.cpu()
    if len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(
            f"label {int(labels.max())} with {num_classes} classes; labels go from 0 to "
            f"{num_classes - 1}, outliers are < 0"
        )
    return labels


def num_classes_of(head: Head) -> int:
    """Number of classes of a head.

    :raises TypeError: if it is none of those that can be started and trained here
    """
    if not isinstance(head, (DistanceHead, nn.Linear)):
        raise TypeError(
            f"{type(head).__name__} is no head; expected "
            f"{', '.join(kind.__name__ for kind in HEADS.values())} or nn.Linear"
        )
    return head.out_features
