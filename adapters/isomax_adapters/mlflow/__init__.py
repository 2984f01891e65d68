"""MLflow: runs mirrored from an output folder."""

from isomax_adapters.mlflow.tracking import TrackingError, track, ui_command

__all__ = ["TrackingError", "track", "ui_command"]
