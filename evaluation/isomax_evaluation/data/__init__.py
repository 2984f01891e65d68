"""Images by name, folder, table or list; what a data set is; who may see which image.

What is asked for is imported then: folders are listed where there is no PyTorch, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isomax_evaluation.data.copies import settle, table_of_copies
    from isomax_evaluation.data.datasets import (
        Splits,
        named_sets,
        open_images,
        open_of_classes,
        open_splits,
    )
    from isomax_evaluation.data.images import (
        OOD_LABEL,
        Images,
        Transformed,
        at_most,
        limit_per_class,
        of_classes,
    )
    from isomax_evaluation.data.pixels import grey_range_of, warnings_of
    from isomax_evaluation.data.reading import check_counts, readable
    from isomax_evaluation.data.settings import Preprocessing, Reading
    from isomax_evaluation.data.splitting import (
        Split,
        draw_test,
        hold_out,
        recorded_parts,
        split_for_calibration,
        split_training,
        table_of_splits,
    )

_PLACES = {
    "datasets": ("Splits", "named_sets", "open_images", "open_of_classes", "open_splits"),
    "copies": ("settle", "table_of_copies"),
    "settings": ("Preprocessing", "Reading"),
    "images": (
        *("OOD_LABEL", "Images", "Transformed", "at_most", "limit_per_class"),
        "of_classes",
    ),
    "pixels": ("grey_range_of", "warnings_of"),
    "reading": ("check_counts", "readable"),
    "splitting": (
        *("Split", "draw_test", "hold_out", "recorded_parts", "split_for_calibration"),
        *("split_training", "table_of_splits"),
    ),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "OOD_LABEL",
    "Images",
    "Preprocessing",
    "Reading",
    "Split",
    "Splits",
    "Transformed",
    "at_most",
    "check_counts",
    "draw_test",
    "grey_range_of",
    "hold_out",
    "limit_per_class",
    "named_sets",
    "of_classes",
    "open_images",
    "open_of_classes",
    "open_splits",
    "readable",
    "recorded_parts",
    "settle",
    "split_for_calibration",
    "split_training",
    "table_of_copies",
    "table_of_splits",
    "warnings_of",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
