"""Detectors fitted on outputs that do not fit into memory.

Most of pytorch-ood's detectors copy the features that they are fitted on. Where these lie on disk
and are large, what a detector keeps of them is computed here, a chunk at a time; the numbers are
the detector's own but for rounding. A detector that keeps the features themselves gets a random
sample of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_ood.detector as ood
import torch
from pytorch_ood.api import Detector
from torch import Tensor

from isomax_evaluation.extraction.store import Outputs
from isomax_evaluation.output.errors import InputError

LARGE = 2 * 2**30  # bytes of features or logits, from which on they are looked at in chunks
CHUNK = 16_384  # images at a time
PAIRS = 16  # classes whose differences to all others are held at a time
SAMPLE = 50_000  # images that a detector keeps which keeps images
MOST = 6 * 2**30  # bytes that a detector may hold for good


def is_large(outputs: Outputs) -> bool:
    """Whether outputs are too large for several copies of them."""
    return max(4 * outputs.features.numel(), 4 * outputs.logits.numel()) > LARGE


def refuse_what_cannot_fit(detector: Detector, outputs: Outputs) -> None:
    """
    :raises ValueError: if what a detector holds for good is too large, with the figure
    """
    if isinstance(detector, ood.GMM):
        classes, width = outputs.logits.shape[1], outputs.features.shape[1]
        held = 8 * classes * width**2
        if held > MOST:
            raise InputError(
                f"holds a {width} x {width} matrix for each of {classes} classes, "
                f"{held / 1e9:.1f} GB; not fitted"
            )


def sample_size(detector: Detector, outputs: Outputs) -> int | None:
    """On how many of the images a detector is fitted; ``None`` if on all of them."""
    if not is_large(outputs) or _streamed(detector) or _is_ours(detector):
        return None
    return min(SAMPLE, len(outputs.labels))


def fit_large(detector: Any, outputs: Outputs, fit: Callable[[Any, Outputs], None]) -> None:
    """Fit a detector on large outputs, all labels at least 0.

    :param fit: how a detector is fitted on outputs that fit into memory
    """
    streamed = _streamed(detector)
    if streamed is not None:
        streamed(detector, outputs)
        return
    size = sample_size(detector, outputs)
    if size is not None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(outputs.labels), generator=generator)[:size].sort().values
        outputs = Outputs(outputs.logits[chosen], outputs.features[chosen], outputs.labels[chosen])
    fit(detector, outputs)


def _streamed(detector: Detector) -> Callable[[Any, Outputs], None] | None:
    if isinstance(detector, (ood.DICE, ood.NCI)):
        return _mean_of_features
    by_kind: dict[type, Callable[[Any, Outputs], None]] = {
        ood.fDBD: _fdbd,
        ood.SHE: _she,
        ood.KLMatching: _kl_matching,
    }
    return by_kind.get(type(detector))


def _is_ours(detector: Detector) -> bool:
    # these look at one class, or one chunk, at a time
    return type(detector).__module__.startswith("isomax")


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, len(tensors[0]), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in tensors)


def _mean(features: Tensor) -> Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for (chunk,) in _chunks(features):
        total += chunk.sum(dim=0, dtype=torch.float64)
    return total / len(features)


def _mean_of_features(detector: Any, outputs: Outputs) -> None:
    # all that these keep of the features is their mean
    mean = _mean(outputs.features).float()[None]
    detector.fit_features(mean, torch.zeros(1, dtype=torch.long))


def _fdbd(detector: Any, outputs: Outputs) -> None:
    detector.train_mean = _mean(outputs.features).float()
    weight = detector.head.weight.detach()
    # its own takes the difference of every pair of classes at once, C x C x D values
    apart = [(rows[:, None] - weight).norm(dim=2) for rows in weight.split(PAIRS)]
    detector._denom_matrix = torch.cat(apart).fill_diagonal_(1)


def _she(detector: Any, outputs: Outputs) -> None:
    classes = int(outputs.labels.max()) + 1
    sums = torch.zeros(classes, outputs.features.shape[1], dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    with torch.no_grad():
        for features, labels in _chunks(outputs.features, outputs.labels):
            right = detector.head(features).argmax(dim=1) == labels
            sums.index_add_(0, labels[right], features[right].double())
            counts += torch.bincount(labels[right], minlength=classes)
    if (counts == 0).any():
        raise ValueError(f"No correct predictions for class {int((counts == 0).nonzero()[0])}")
    detector.patterns = (sums / counts[:, None]).float()


def _kl_matching(detector: Any, outputs: Outputs) -> None:
    classes = outputs.logits.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    for (logits,) in _chunks(outputs.logits):
        posteriors = logits.softmax(dim=1)
        predicted = posteriors.argmax(dim=1)
        sums.index_add_(0, predicted, posteriors.double())
        counts += torch.bincount(predicted, minlength=classes)
    there = counts > 0
    # a mean of posteriors that have their largest value at one class has it there too
    means = (sums[there] / counts[there, None]).log()
    detector.fit_logits(means.float(), torch.zeros(len(means), dtype=torch.long))
