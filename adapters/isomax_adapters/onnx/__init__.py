"""ONNX: export a model folder (needs torch), score with ONNX Runtime (does not)."""

from typing import Any

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from isomax_adapters.extras import need

        need("onnx", by="isomax_adapters.onnx.export")
        from isomax_adapters.onnx.exporting import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
