"""Images by name, folder, table or list; what a data set is."""

from isomax_evaluation.data.datasets import Splits, named_sets, open_images, open_splits
from isomax_evaluation.data.holding_out import Divided, divide, recorded_parts, table_of_splits
from isomax_evaluation.data.images import (
    OOD_LABEL,
    Decoding,
    Images,
    Transformed,
    at_most,
    limit_per_class,
    stratified_split,
)
from isomax_evaluation.data.pixels import grey_range_of, warnings_of
from isomax_evaluation.data.reading import check_apart, check_counts, readable

__all__ = [
    "OOD_LABEL",
    "Decoding",
    "Divided",
    "Images",
    "Splits",
    "Transformed",
    "at_most",
    "check_apart",
    "check_counts",
    "divide",
    "grey_range_of",
    "limit_per_class",
    "named_sets",
    "open_images",
    "open_splits",
    "readable",
    "recorded_parts",
    "stratified_split",
    "table_of_splits",
    "warnings_of",
]
