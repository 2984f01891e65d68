"""pytorch-ood: its detectors wired to any timm model; our components registered as its own."""

from isomax_adapters.extras import need

need("timm", by=__name__)

from isomax_adapters.pytorch_ood.detectors import (
    NAMES,
    WiringNote,
    check_names,
    detectors_for,
    why_not,
    wiring_notes,
    with_bank,
)
from isomax_adapters.pytorch_ood.digests import Digests, digests_of_weights
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.registration import register, unregister
from isomax_adapters.pytorch_ood.saving import (
    Saved,
    load_detector,
    read_detector,
    save_detector,
    state_of,
)
from isomax_adapters.pytorch_ood.wiring import kind_of

__all__ = [
    "NAMES",
    "Digests",
    "Parts",
    "Saved",
    "WiringNote",
    "check_names",
    "detectors_for",
    "digests_of_weights",
    "kind_of",
    "load_detector",
    "read_detector",
    "register",
    "save_detector",
    "state_of",
    "unregister",
    "why_not",
    "wiring_notes",
    "with_bank",
]
