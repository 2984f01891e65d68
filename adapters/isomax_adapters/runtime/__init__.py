"""Scoring without PyTorch: numpy, ONNX Runtime and Pillow, nothing else.

from isomax_adapters.runtime import Scorer
"""

from isomax_adapters.runtime.scorer import ModelError, Result, Scorer

__all__ = ["ModelError", "Result", "Scorer"]
