"""MLflow: runs mirrored from an output folder, and a model flavour.

The flavour is used as MLflow's own are::

    from isomax_adapters import mlflow as isomax_mlflow

    isomax_mlflow.log_model("model.onnx", name="model", registered_model_name="birds")
    scorer = isomax_mlflow.load_model("models:/birds@champion")
"""

from isomax_adapters.extras import need

need("mlflow", by=__name__)

from isomax_adapters.mlflow.flavor.model import (
    FLAVOR_NAME,
    get_default_conda_env,
    get_default_pip_requirements,
    load_model,
    log_model,
    save_model,
)
from isomax_adapters.mlflow.tracking.errors import TrackingError
from isomax_adapters.mlflow.tracking.live import LiveTracking
from isomax_adapters.mlflow.tracking.registry import ask_to_register, check_name
from isomax_adapters.mlflow.tracking.sync import track, ui_command
from isomax_adapters.runtime.pyfunc import _load_pyfunc

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
