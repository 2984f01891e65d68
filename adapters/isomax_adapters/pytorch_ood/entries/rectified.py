"""ReAct, ASH, SCALE and VRA on pooled features, as their authors' code has them.

pytorch-ood's detectors of these names work on feature maps before pooling. On pooled features they
need no maps, so that they suit vision transformers too.
"""

from collections.abc import Callable
from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import FeaturesDetector, RequiresFittingException
from pytorch_ood.detector.ash import ash_s
from pytorch_ood.detector.scale import scale
from pytorch_ood.utils import extract_features
from torch import Tensor

from isomax_adapters.pytorch_ood.quantiles import column_quantiles, overall_quantile
from isomax_adapters.pytorch_ood.wiring import Wiring, fit_as_it_is, needs_one_classifier
from isomax_adapters.runtime.errors import InputError


class _EnergyOfShaped(FeaturesDetector):
    """The energy of the logits of features that a subclass has shaped."""

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]
    ) -> None:
        """
        :param encoder: gives pooled features, :math:`B \\times D`
        :param head: gives logits for pooled features
        """
        super().__init__()
        self.encoder = encoder
        self.head = head

    def shaped(self, z: Tensor) -> Tensor:
        """Features, :math:`B \\times D`, as the classifier is given them."""
        raise NotImplementedError

    def fit(self, data_loader: Any) -> "_EnergyOfShaped":
        """Fit on the features of images; labels below 0 are left out."""
        if self.requires_fit:
            self.fit_features(*extract_features(data_loader, self.encoder, self.device or "cpu"))
        return self

    @torch.no_grad()
    def predict_features(self, z: Tensor) -> Tensor:
        """
        :param z: pooled features, :math:`B \\times D`
        :return: scores, :math:`B`
        """
        scores: Tensor = ood.EnergyBased.score(self.head(self.shaped(z)))
        return scores

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Scores of images, :math:`B`."""
        scores: Tensor = self.predict_features(
            self.encoder(x if self.device is None else x.to(self.device))
        )
        return scores


class PooledASH(_EnergyOfShaped):
    """ASH-S: all but the largest features set to zero, the rest scaled by
    :math:`e^{s_1 / s_2}`, with the sums of the features before and after."""

    info = ood.ASH.info
    hyperparameter_space = ood.ASH.hyperparameter_space

    def __init__(self, encoder: Any, head: Any, percentile: float = 0.9) -> None:
        """
        :param percentile: share of the features that are set to zero
        """
        super().__init__(encoder, head)
        self.percentile = percentile

    def shaped(self, z: Tensor) -> Tensor:
        return ash_s(z[:, :, None, None], self.percentile).flatten(1)


class PooledSCALE(_EnergyOfShaped):
    """SCALE: all features scaled by :math:`e^{s_1 / s_2}`, with the sums of all and of the
    largest."""

    info = ood.SCALE.info
    hyperparameter_space = ood.SCALE.hyperparameter_space

    def __init__(self, encoder: Any, head: Any, percentile: float = 0.85) -> None:
        """
        :param percentile: share of the features that the second sum leaves out
        """
        super().__init__(encoder, head)
        self.percentile = percentile

    def shaped(self, z: Tensor) -> Tensor:
        return scale(z[:, :, None, None], self.percentile).flatten(1)


class PooledReAct(_EnergyOfShaped):
    """ReAct: features cut off at a percentile of all features of the training images."""

    info = ood.ReAct.info
    hyperparameter_space = ood.ReAct.hyperparameter_space
    requires_fit = True

    def __init__(self, encoder: Any, head: Any, percentile: float = 0.9) -> None:
        """
        :param percentile: share of the training images' features below the threshold
        """
        super().__init__(encoder, head)
        self.percentile = percentile
        self.threshold: float | None = None

    def fit_features(self, z: Tensor, y: Tensor) -> "PooledReAct":
        """
        :param z: pooled features, :math:`N \\times D`; may be memory-mapped
        :param y: labels, :math:`N`; those below 0 are left out
        :raises InputError: if no label is at least 0
        """
        self.threshold = overall_quantile(_known(z, y).numpy(), self.percentile)
        return self

    def shaped(self, z: Tensor) -> Tensor:
        if self.threshold is None:
            raise RequiresFittingException
        return z.clip(max=self.threshold)


class PooledVRA(_EnergyOfShaped):
    """VRA: features below a lower quantile set to zero, those above an upper one cut off at it.

    .. math:: g_d(z) = 0 \\text{ if } z < \\alpha_d, \\quad \\min(z, \\beta_d) \\text{ otherwise}

    with quantiles of each feature over the training images. (pytorch-ood's VRA raises what is below
    the lower quantile to it.)
    """

    info = ood.VRA.info
    hyperparameter_space = {  # noqa: RUF012  # what the authors' commands use
        "lower_percentile": [0.5, 0.6],
        "upper_percentile": [0.85, 0.9, 0.95],
    }
    requires_fit = True

    def __init__(
        self,
        encoder: Any,
        head: Any,
        lower_percentile: float = 0.6,
        upper_percentile: float = 0.95,
    ) -> None:
        """
        :param lower_percentile: share of a feature's training values below :math:`\\alpha`
        :param upper_percentile: share of a feature's training values below :math:`\\beta`
        """
        super().__init__(encoder, head)
        self.lower_percentile = lower_percentile
        self.upper_percentile = upper_percentile
        self.thresholds: Tensor | None = None  #: :math:`\\alpha, \\beta`, :math:`2 \\times D`

    def fit_features(self, z: Tensor, y: Tensor) -> "PooledVRA":
        """
        :param z: pooled features, :math:`N \\times D`; may be memory-mapped
        :param y: labels, :math:`N`; those below 0 are left out
        :raises InputError: if no label is at least 0
        """
        shares = [self.lower_percentile, self.upper_percentile]
        found = torch.from_numpy(column_quantiles(_known(z, y).numpy(), shares))
        self.thresholds = found.to(self.device or z.device, z.dtype)
        return self

    def shaped(self, z: Tensor) -> Tensor:
        if self.thresholds is None:
            raise RequiresFittingException
        low, high = self.thresholds
        return z.clip(max=high).where(z >= low, 0)


def _known(z: Tensor, y: Tensor) -> Tensor:
    """Without outliers; a view where there are none, so that memory-mapped features stay there."""
    known = (y >= 0).cpu()
    if not known.any():
        raise InputError("no label is at least 0; fit on in-distribution samples")
    z = z.detach().cpu().float()
    return z if known.all() else z[known]


ENTRIES: dict[str, Wiring] = {
    "ASH": Wiring(
        PooledASH,
        "pooled features; ASH-S, 90% of them set to zero",
        "https://github.com/andrijazz/ash: models/resnet_imagenet.py, config/imagenet_config.yml",
        needs_one_classifier,
        build=lambda p: PooledASH(p.encode, p.classify),
    ),
    "ReAct": Wiring(
        PooledReAct,
        "pooled features, cut off at the 90th percentile of all of them",
        "https://github.com/deeplearning-wisc/react: compute_threshold.py, models/resnet.py",
        needs_one_classifier,
        build=lambda p: PooledReAct(p.encode, p.classify),
        fit_large=fit_as_it_is,
    ),
    "SCALE": Wiring(
        PooledSCALE,
        "pooled features; scaled by the largest 15% of them",
        "https://github.com/kai422/SCALE: openood/networks/scale_net.py, "
        "configs/postprocessors/scale.yml",
        needs_one_classifier,
        build=lambda p: PooledSCALE(p.encode, p.classify),
    ),
    "VRA": Wiring(
        PooledVRA,
        "pooled features; set to zero below their 60th percentile, cut off at their 95th",
        "https://github.com/zeroQiaoba/VRA: models/densenet.py, readme.md",
        needs_one_classifier,
        build=lambda p: PooledVRA(p.encode, p.classify),
        fit_large=fit_as_it_is,
    ),
}
