"""Images by name, folder, table or list; what a data set is; who may see which image.

What is asked for is imported then: folders are listed where there is no PyTorch, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isomax_evaluation.data.datasets import Splits, named_sets, open_images, open_splits
    from isomax_evaluation.data.holding_out import Divided, divide, recorded_parts, table_of_splits
    from isomax_evaluation.data.images import (
        OOD_LABEL,
        Images,
        Transformed,
        at_most,
        limit_per_class,
        stratified_split,
    )
    from isomax_evaluation.data.pixels import grey_range_of, warnings_of
    from isomax_evaluation.data.reading import check_apart, check_counts, readable

_PLACES = {
    "datasets": ("Splits", "named_sets", "open_images", "open_splits"),
    "holding_out": ("Divided", "divide", "recorded_parts", "table_of_splits"),
    "images": (
        *("OOD_LABEL", "Images", "Transformed", "at_most", "limit_per_class"),
        "stratified_split",
    ),
    "pixels": ("grey_range_of", "warnings_of"),
    "reading": ("check_apart", "check_counts", "readable"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "OOD_LABEL",
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


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
