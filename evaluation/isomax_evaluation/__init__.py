"""What a user sets out to do: train, compare, export, score, measure.

``from isomax_evaluation import train, compare``. Torch is imported when one of them is first used.
"""

from typing import Any

from isomax_adapters.extras import need

__all__ = ["compare", "train"]


def __getattr__(name: str) -> Any:
    if name == "compare":
        need("onnx", "report", by="isomax_evaluation.compare")
        from isomax_evaluation.comparison.compare import compare

        return compare
    if name == "train":
        need("train", by="isomax_evaluation.train")
        from isomax_evaluation.training.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
