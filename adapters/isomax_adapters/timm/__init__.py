"""timm: a head on any backbone, timm-registered models, model folders.

Importing this package registers ``isomax_<arch>``, ``isomaxplus_<arch>``, ``dismax_<arch>`` and
``softmax_<arch>`` with timm for every architecture that has a classifier.
"""

from isomax_adapters.timm.attaching import HEADS, attach, head_of
from isomax_adapters.timm.folder import (
    ModelFolderError,
    load_calibration,
    load_model,
    save_calibration,
    save_model,
)
from isomax_adapters.timm.registry import create_model, register_models

register_models()

__all__ = [
    "HEADS",
    "ModelFolderError",
    "attach",
    "create_model",
    "head_of",
    "load_calibration",
    "load_model",
    "register_models",
    "save_calibration",
    "save_model",
]
