"""Detectors fitted on outputs that do not fit into memory.

Most of pytorch-ood's detectors copy the features that they are fitted on. Where these lie on disk
and are large, what a detector keeps of them is computed as its wiring says, a chunk at a time; the
numbers are the detector's own but for rounding. A detector that keeps the features themselves gets
a random sample of them.
"""

from typing import Any

import torch
from pytorch_ood.api import Detector

from isomax_adapters.pytorch_ood.entries import wiring_of
from isomax_adapters.pytorch_ood.wiring import fit_as_it_is
from isomax_evaluation.extraction.store import Outputs
from isomax_evaluation.output.errors import InputError

LARGE = 2 * 2**30  # bytes of features or logits, from which on they are looked at in chunks
SAMPLE = 50_000  # images that a detector keeps which keeps images
MOST = 6 * 2**30  # bytes that a detector may hold for good


def is_large(outputs: Outputs) -> bool:
    """Whether outputs are too large for several copies of them."""
    return max(4 * outputs.features.numel(), 4 * outputs.logits.numel()) > LARGE


def sample_size(detector: Detector, outputs: Outputs) -> int | None:
    """On how many of the images a detector is fitted; ``None`` if on all of them."""
    if not is_large(outputs) or wiring_of(detector).fit_large is not None:
        return None
    return min(SAMPLE, len(outputs.labels))


def fit_outputs(detector: Any, outputs: Outputs) -> None:
    """Fit a detector of logits or features, with bounded memory however many images there are.

    :param outputs: all labels at least 0
    :raises InputError: if what it holds for good is too large, with the figure
    """
    wiring, classes, width = wiring_of(detector), outputs.logits.shape[1], outputs.features.shape[1]
    if (held := wiring.held(classes, width)) > MOST:
        raise InputError(
            f"holds a {width} x {width} matrix for each of {classes} classes, "
            f"{held / 1e9:.1f} GB; not fitted"
        )
    if not is_large(outputs):
        fit_as_it_is(detector, outputs)
    elif wiring.fit_large is not None:
        wiring.fit_large(detector, outputs)
    else:
        size, generator = len(outputs.labels), torch.Generator().manual_seed(0)
        chosen = torch.randperm(size, generator=generator)[:SAMPLE].sort().values
        sample = Outputs(outputs.logits[chosen], outputs.features[chosen], outputs.labels[chosen])
        fit_as_it_is(detector, sample)
