"""Every detector there is, wired to the parts of a model; by what they are of.

The plain names are wired as the papers' own code does. Where pytorch-ood's documentation does it
otherwise, that is another name, which says how.
"""

from pytorch_ood.api import Detector

from isomax_adapters.pytorch_ood.entries import (
    classifier,
    distances,
    heads,
    images,
    logits,
    maps,
    rectified,
    subspaces,
)
from isomax_adapters.pytorch_ood.wiring import Wiring

_OTHERS = (logits, classifier, rectified, distances, subspaces, maps, images)
_found = {name: wiring for module in _OTHERS for name, wiring in module.ENTRIES.items()}

WIRINGS: dict[str, Wiring] = {name: _found[name] for name in sorted(_found, key=str.lower)}
WIRINGS |= heads.ENTRIES  # ours come last


def wiring_of(detector: Detector) -> Wiring:
    """What is known of a detector, by its class; of any other, that it is as it is."""
    made = type(detector)
    found = (wiring for wiring in WIRINGS.values() if wiring.made is made)
    return next(found, Wiring(made, "", ""))
