"""Images by name, folder or list; what a dataset is."""

from isomax_evaluation.data.datasets import open_images, open_splits
from isomax_evaluation.data.images import (
    OOD_LABEL,
    Images,
    Transformed,
    at_most,
    limit_per_class,
    stratified_split,
)
from isomax_evaluation.data.reading import readable

__all__ = [
    "OOD_LABEL",
    "Images",
    "Transformed",
    "at_most",
    "limit_per_class",
    "open_images",
    "open_splits",
    "readable",
    "stratified_split",
]
