r"""Heads fitted on the features of a model that stays as it is, as detectors of pytorch-ood's API.

The model keeps its logits and its class decision; the head scores. What differs from the known
classes in content is told best by a trained head; what differs in style, by detectors that know how
features are spread around their class, such as :class:`isomax.MahalanobisPP`.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pytorch_ood.api import (
    DetectorInfo,
    RequiresFittingException,
    Task,
)
from torch import Tensor

from isomax.fitting import fit_head
from isomax.functional import SCORES
from isomax.heads import DisMaxHead, DistanceHead, IsoMaxHead, IsoMaxPlusHead
from isomax.moments import FeaturesOnStatistics, Statistics, finest_dtype
from isomax.papers import DISMAX, ISOMAX, ISOMAX_PLUS
from isomax.starting import of_directions, put_at_means, start_head


class _PostHoc(FeaturesOnStatistics):
    hyperparameter_space: ClassVar = {"epochs": [0, 20]}

    head_class: type[DistanceHead]

    head: DistanceHead  #: there once fitted, with a prototype per class

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor] | None,
        epochs: int = 0,
        lr: float | None = None,
        seed: int = 0,
    ) -> None:
        r"""
        :param encoder: gives pooled features, :math:`B \times D`; may be ``None`` when using
            ``fit_features(...)`` and ``predict_features(...)``
        :param epochs: passes of training over the features; with none, the prototypes are the class
            means, and nothing is drawn or derived
        :param lr: learning rate of these; that of :func:`isomax.fitting.fit_head` if not given
        :param seed: of the order of the samples
        """
        super().__init__(encoder)
        self.epochs = epochs
        self.lr = lr
        self.seed = seed

    def fit_statistics(self, statistics: Statistics) -> "_PostHoc":
        z, y = statistics.features, statistics.labels.cpu()
        classes = statistics.moments().classes
        # the paper's own start, which draws random numbers, is not wanted
        head = self.head_class(z.shape[1], len(classes), device="meta")
        head = head.to_empty(device=self.device or z.device)
        if self.epochs:
            places = torch.searchsorted(classes, y).where(y >= 0, -1)
            start_head(head, z, places)
            fit_head(head, z, places, self.epochs, self.lr, seed=self.seed)
        else:
            put_at_means(head, statistics.moments(of_directions(head), self.device).means)
        # distances much smaller than the features cancel in float32
        self.head = head.to(finest_dtype(head.prototypes.device)).eval()
        return self

    @torch.no_grad()
    def predict_features(self, z: Tensor) -> Tensor:
        r"""
        :param z: pooled features, :math:`B \times D`
        :return: scores, :math:`B`, in float64
        :raises RequiresFittingException: if the detector is not fitted
        """
        if not hasattr(self, "head"):
            raise RequiresFittingException
        return SCORES[self.head.score](self.head(z.to(self.head.prototypes)))


class PostHocIsoMax(_PostHoc):
    r"""Entropy of a head of IsoMax on a model's features.

    .. math:: \mathrm{ES} = -\sum_k \pi_k \log \pi_k, \quad
        \pi = \mathrm{softmax}(-\lVert z - p_1 \rVert_2, \dots, -\lVert z - p_C \rVert_2)

    with the prototypes :math:`p_k` at the class means; or, if there are epochs, at zero before
    these, which trains to the better head.

    .. code-block:: python

        import torch
        from isomax import PostHocIsoMax

        features, labels = torch.randn(200, 16), torch.arange(200) % 4
        detector = PostHocIsoMax(None, epochs=20).fit_features(features, labels)
        scores = detector.predict_features(torch.randn(8, 16))

    Source: "Entropic Out-of-Distribution Detection", https://arxiv.org/abs/2006.04005, whose head
    is trained together with the network.
    """

    info = DetectorInfo(paper=ISOMAX, tasks={Task.CLASSIFICATION}, ai_coded=True)

    head_class = IsoMaxHead


class PostHocIsoMaxPlus(_PostHoc):
    r"""Distance from the direction of a model's features to that of the nearest class mean.

    .. math:: \mathrm{MDS} = |s| \, \min_k \Bigl\lVert \frac{z}{\lVert z \rVert} -
        \frac{p_k}{\lVert p_k \rVert} \Bigr\rVert_2

    with the prototypes :math:`p_k` of IsoMax+ at the class means of :math:`z / \lVert z \rVert` and
    the scale :math:`s = 1`; with epochs, both are trained from there.

    .. code-block:: python

        import torch
        from isomax import PostHocIsoMaxPlus

        features, labels = torch.randn(200, 16), torch.arange(200) % 4
        detector = PostHocIsoMaxPlus(None).fit_features(features, labels)
        scores = detector.predict_features(torch.randn(8, 16))

    Source: "Enhanced Isotropy Maximization Loss", https://arxiv.org/abs/2105.14399, whose head is
    trained together with the network; the class means are weight imprinting,
    https://arxiv.org/abs/1712.07136.
    """

    info = DetectorInfo(paper=ISOMAX_PLUS, tasks={Task.CLASSIFICATION}, ai_coded=True)

    head_class = IsoMaxPlusHead


class PostHocDisMax(_PostHoc):
    r"""Maximum and mean logit and the entropy of a head of DisMax on a model's features.

    .. math:: \mathrm{MMLES} = -\Bigl(\max_k f_k(z) + \frac{1}{C} \sum_k f_k(z)\Bigr) + \mathrm{ES}

    with :math:`f_k` the logits of :class:`~isomax.DisMaxHead`, its prototypes at the class means of
    :math:`z / \lVert z \rVert` and its scale 1; with epochs, both are trained from there.

    .. code-block:: python

        import torch
        from isomax import PostHocDisMax

        features, labels = torch.randn(200, 16), torch.arange(200) % 4
        detector = PostHocDisMax(None).fit_features(features, labels)
        scores = detector.predict_features(torch.randn(8, 16))

    Source: "Distinction Maximization Loss", https://arxiv.org/abs/2205.05874, whose head is trained
    together with the network; the class means are weight imprinting,
    https://arxiv.org/abs/1712.07136.
    """

    info = DetectorInfo(paper=DISMAX, tasks={Task.CLASSIFICATION}, ai_coded=True)

    head_class = DisMaxHead


POST_HOC: dict[str, type[_PostHoc]] = {
    detector.head_class.name: detector
    for detector in (PostHocIsoMax, PostHocIsoMaxPlus, PostHocDisMax)
}
"""The detectors by the name of their head."""
