"""pytorch-ood: its detectors wired to any timm model; our components registered as its own."""

from isomax_adapters.pytorch_ood.detectors import NAMES, detectors_for, why_not
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.pytorch_ood.registration import register, unregister

__all__ = ["NAMES", "Parts", "detectors_for", "register", "unregister", "why_not"]
