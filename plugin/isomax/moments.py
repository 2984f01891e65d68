r"""Means and scatter of features: what many detectors are fitted on, found once for them all."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from pytorch_ood.api import FeaturesDetector, ModelNotSetException
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**20  # values looked at at a time; of more, most time goes into finding memory
STRIP = 256  # columns of a scatter that are computed at a time


class Moments:
    r"""Class means of features and their scatter around these, in float64.

    .. math:: \mu_k = \frac{1}{N_k} \sum_{i : y_i = k} z_i, \quad
        S = \sum_i (z_i - \mu_{y_i}) (z_i - \mu_{y_i})^\top

    The features are read for the means when these are first asked for, and again for the scatter,
    a chunk at a time, so that they may be a memory-mapped tensor of any length. The scatter around
    any other point follows from these two (:meth:`around`).
    """

    def __init__(self, z: Tensor, y: Tensor, normalize: bool, device: torch.device | str) -> None:
        r"""
        :param z: features, :math:`N \times D`
        :param y: labels, :math:`N`; those below 0 are left out
        :param normalize: whether features are divided by their length
        :param device: where this is computed
        :raises ValueError: if no label is at least 0
        """
        self._z, self._y, self._normalize, self.device = z, y.cpu(), normalize, torch.device(device)
        #: the labels that occur, and how often
        self.classes, self.counts = self._y[self._y >= 0].unique(return_counts=True)
        if not len(self.classes):
            raise ValueError("no label is at least 0; fit on in-distribution samples")

    @cached_property
    def means(self) -> Tensor:
        r"""
        :return: :math:`\mu`, a row for each of the classes that occur
        :raises ValueError: if features are not finite
        """
        sums = self._zeros(len(self.classes))
        for rows, places in self.chunks():
            sums.index_add_(0, places, rows)
        if (bad := (~sums.isfinite()).any(dim=1).cpu()).any():
            raise ValueError(
                f"features of class {listed(self.classes[bad])} are NaN or infinite; look at the "
                "model that gave them"
            )
        return sums / self.counts.to(sums)[:, None]

    @property
    def shares(self) -> Tensor:
        """Of the classes among the samples."""
        return self.counts.to(self.means) / self.counts.sum()

    @property
    def center(self) -> Tensor:
        """Mean of all features, :math:`D`."""
        return self.shares @ self.means

    @cached_property
    def within(self) -> Tensor:
        r""":math:`S / N`, the covariance that the classes share, :math:`D \times D`."""
        scatter, means = self._zeros(self._z.shape[1]), self.means
        for rows, places in self.chunks():
            rows = rows - means[places]
            # above the diagonal alone; below it is the same
            for start in range(0, len(scatter), STRIP):
                some = slice(start, start + STRIP)
                scatter[some, start:].addmm_(rows[:, some].T, rows[:, start:])
        return (scatter.triu() + scatter.triu(1).T) / self.counts.sum()

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of :attr:`within`, on the CPU."""
        values, vectors = torch.linalg.eigh(self.within.double().cpu())
        return values, vectors

    def around(self, point: Tensor) -> Tensor:
        r"""The mean product of deviations from a point, :math:`D \times D`, without another pass.

        .. math:: \frac{1}{N} \sum_i (z_i - a) (z_i - a)^\top =
            \frac{1}{N} \Bigl( S + \sum_k N_k (\mu_k - a) (\mu_k - a)^\top \Bigr)

        :param point: :math:`a`, :math:`D`
        """
        away = self.means - point
        return self.within + away.T @ (self.shares[:, None] * away)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and the places of their labels among the classes, without outliers."""
        step, dtype = max(1, CHUNK // self._z.shape[1]), finest_dtype(self.device)
        for start in range(0, len(self._y), step):
            labels = self._y[start : start + step]
            known = labels >= 0
            rows = self._z[start : start + step].detach().to(self.device, dtype)
            rows = rows if known.all() else rows[known.to(self.device)]
            rows = F.normalize(rows, dim=1) if self._normalize else rows
            yield rows, torch.searchsorted(self.classes, labels[known]).to(self.device)

    def _zeros(self, rows: int) -> Tensor:
        width, dtype = self._z.shape[1], finest_dtype(self.device)
        return torch.zeros(rows, width, dtype=dtype, device=self.device)


class Statistics:
    """The moments of some features, found once however many detectors are fitted on them."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        r"""
        :param features: :math:`N \times D`
        :param labels: :math:`N`; those below 0 are left out
        """
        self.features, self.labels = features, labels
        self._found: dict[tuple[bool, torch.device], Moments] = {}

    def moments(self, normalize: bool = False, device: torch.device | None = None) -> Moments:
        """
        :param normalize: of the features divided by their length
        :param device: where they are computed; that of the features if not given
        :raises ValueError: if no label is at least 0
        """
        key = normalize, device or self.features.device
        if key not in self._found:
            self._found[key] = Moments(self.features, self.labels, *key)
        return self._found[key]


class OnStatistics:
    """A detector that is fitted on :class:`Statistics`."""

    def fit_statistics(self, statistics: Statistics) -> Any:
        """:meth:`fit_features` on what has been found of the features, perhaps for others too."""
        raise NotImplementedError

    def fit_features(self, z: Tensor, y: Tensor) -> Any:
        r"""
        :param z: pooled features, :math:`N \times D`; one that is memory-mapped is never read whole
        :param y: labels, :math:`N`; those below 0 are left out, and some may not occur
        :return: the fitted detector
        :raises ValueError: if no label is at least 0, or the features cannot be used
        """
        return self.fit_statistics(Statistics(z, y))


class FeaturesOnStatistics(OnStatistics, FeaturesDetector):
    """One of pooled features, that an encoder gives for images."""

    requires_fit = True

    def __init__(self, encoder: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.encoder = encoder

    def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Fit on the features that the encoder gives for images; labels below 0 are left out.

        :raises ModelNotSetException: if there is no encoder
        :raises ValueError: as :meth:`fit_features`
        """
        features, labels = [], []
        with torch.no_grad():
            for x, y in data_loader:
                features.append(self._encoded(x).cpu())
                labels.append(y.cpu())
        return self.fit_features(torch.cat(features), torch.cat(labels))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """
        :param x: images, given to the encoder
        :return: scores, :math:`B`
        :raises ModelNotSetException: if there is no encoder
        :raises RequiresFittingException: if the detector is not fitted
        """
        scores: Tensor = self.predict_features(self._encoded(x))
        return scores

    def _encoded(self, x: Tensor) -> Tensor:
        if self.encoder is None:
            raise ModelNotSetException
        return self.encoder(x if self.device is None else x.to(self.device))


def listed(classes: Tensor) -> str:
    """The first of them, for a message."""
    return ", ".join(map(str, classes[:10].tolist())) + (", ..." if len(classes) > 10 else "")


def finest_dtype(device: torch.device) -> torch.dtype:
    """float64, but on Apple's devices, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64
