"""What a user sets out to do: train, compare, export, score, measure.

``from isomax_evaluation import train, compare``. Torch is imported when one of them is first used.
"""

from typing import Any

__all__ = ["compare", "train"]


def __getattr__(name: str) -> Any:
    if name == "compare":
        from isomax_evaluation.comparison.compare import compare

        return compare
    if name == "train":
        from isomax_evaluation.training.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
