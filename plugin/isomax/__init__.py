"""IsoMax, IsoMax+ and DisMax: out-of-distribution detection by the head and the loss.

Replace a network's last ``nn.Linear`` by a head, train with :class:`IsoMaxLoss`, and read
known from unknown off the entropy of the output.
"""

from importlib.util import find_spec

if _missing := [name for name in ("torch", "pytorch_ood") if find_spec(name) is None]:
    raise ImportError(
        f"isomax needs {' and '.join(_missing)}, not installed here; pip install '.[timm]' in the "
        "folder of isomax's sources"
    )

from isomax.calibration import RejectionThreshold, fit_temperature
from isomax.detectors import EntropicScore, MaxMeanLogitEntropyScore, MinimumDistanceScore
from isomax.fitting import fit_head
from isomax.heads import DisMaxHead, DistanceHead, IsoMaxHead, IsoMaxPlusHead
from isomax.losses import FractionalProbabilityLoss, IsoMaxLoss
from isomax.mahalanobis import RMDPP, MahalanobisPP
from isomax.posthoc import PostHocDisMax, PostHocIsoMax, PostHocIsoMaxPlus
from isomax.starting import class_means, start_at_means, start_head

__all__ = [
    "RMDPP",
    "DisMaxHead",
    "DistanceHead",
    "EntropicScore",
    "FractionalProbabilityLoss",
    "IsoMaxHead",
    "IsoMaxLoss",
    "IsoMaxPlusHead",
    "MahalanobisPP",
    "MaxMeanLogitEntropyScore",
    "MinimumDistanceScore",
    "PostHocDisMax",
    "PostHocIsoMax",
    "PostHocIsoMaxPlus",
    "RejectionThreshold",
    "class_means",
    "fit_head",
    "fit_temperature",
    "start_at_means",
    "start_head",
]
