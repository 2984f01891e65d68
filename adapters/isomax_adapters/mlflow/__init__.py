"""MLflow: runs mirrored from an output folder, and a model flavour.

The flavour is used as MLflow's own are::

    from isomax_adapters import mlflow as isomax_mlflow

    isomax_mlflow.log_model("model.onnx", name="model", registered_model_name="birds")
    scorer = isomax_mlflow.load_model("models:/birds@champion")

A model that was logged carries the source of this package; so what loads it must get along without
what tracking needs, and tracking is imported when it is asked for.
"""

from importlib import import_module
from typing import Any

from isomax_adapters.extras import need

need("mlflow", by=__name__)

from isomax_adapters.mlflow.flavor import (
    FLAVOR_NAME,
    _load_pyfunc,
    get_default_conda_env,
    get_default_pip_requirements,
    load_model,
    log_model,
    save_model,
)

__all__ = [
    "FLAVOR_NAME",
    "LiveTracking",
    "TrackingError",
    "_load_pyfunc",
    "ask_to_register",
    "check_name",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "save_model",
    "track",
    "ui_command",
]


_TRACKING = {
    "LiveTracking": "live",
    "TrackingError": "errors",
    "ask_to_register": "registry",
    "check_name": "registry",
    "track": "tracking",
    "ui_command": "tracking",
}


def __getattr__(name: str) -> Any:
    if name in _TRACKING:
        return getattr(import_module(f"{__name__}.{_TRACKING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
