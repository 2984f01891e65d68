"""pytorch-ood: its detectors wired to any timm model; our components registered as its own."""

from isomax_adapters.pytorch_ood.detectors import (
    NAMES,
    WiringNote,
    detectors_for,
    why_not,
    wiring_notes,
)
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.registration import register, unregister

__all__ = [
    "NAMES",
    "Parts",
    "WiringNote",
    "detectors_for",
    "register",
    "unregister",
    "why_not",
    "wiring_notes",
]
