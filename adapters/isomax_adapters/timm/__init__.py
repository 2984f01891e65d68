"""timm: a head on any backbone, timm-registered models, model folders.

Importing this package registers ``isomax_<arch>``, ``isomaxplus_<arch>``, ``dismax_<arch>`` and
``softmax_<arch>`` with timm for every architecture that has a classifier. Scripts that cannot be
told to import it run as ``python -m isomax_adapters.timm SCRIPT ...``.
"""

from isomax_adapters.extras import need

need("timm", by=__name__)

from isomax_adapters.timm.attaching import HEADS, attach, head_of
from isomax_adapters.timm.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_weights,
    read_checkpoint,
)
from isomax_adapters.timm.folder import (
    ModelFolderError,
    load_calibration,
    load_model,
    save_calibration,
    save_model,
)
from isomax_adapters.timm.importing import folder_from_checkpoint, model_from_checkpoint
from isomax_adapters.timm.pooling import pool_distances
from isomax_adapters.timm.publishing import push_model
from isomax_adapters.timm.registry import create_model, register_head, register_models
from isomax_adapters.timm.starting import start_heads
from isomax_adapters.timm.statistics import hold_statistics

register_models()
pool_distances()

__all__ = [
    "HEADS",
    "Checkpoint",
    "CheckpointError",
    "ModelFolderError",
    "attach",
    "create_model",
    "folder_from_checkpoint",
    "head_of",
    "hold_statistics",
    "load_calibration",
    "load_model",
    "load_weights",
    "model_from_checkpoint",
    "push_model",
    "read_checkpoint",
    "register_head",
    "register_models",
    "save_calibration",
    "save_model",
    "start_heads",
]
