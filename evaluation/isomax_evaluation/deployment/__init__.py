"""Classifiers made to say "unknown", and their exported files at work."""

from typing import Any

__all__ = ["calibrate", "calibrate_model"]


def __getattr__(name: str) -> Any:
    # what scores with an exported file lies here too, and needs no PyTorch
    if name in __all__:
        from isomax_evaluation.deployment import calibrating

        return getattr(calibrating, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
