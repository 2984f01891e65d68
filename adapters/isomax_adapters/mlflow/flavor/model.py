"""The model flavour: a file written by ``isomax export``, as MLflow saves, loads and serves models.

Nothing is pickled, and loading needs numpy, ONNX Runtime and Pillow beside MLflow: the ONNX file is
stored as it is, and with it the source of :mod:`isomax_adapters.runtime`, which loads and scores.
"""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.models.utils import _save_example
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS
from mlflow.tracking.artifact_utils import _download_artifact_from_uri
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _mlflow_conda_env,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)
from mlflow.utils.file_utils import get_total_file_size, write_to
from mlflow.utils.model_utils import (
    _get_flavor_configuration,
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)
from mlflow.utils.requirements_utils import _get_pinned_requirement
from PIL import Image

import isomax_adapters
from isomax_adapters.runtime import Scorer, pyfunc
from isomax_adapters.runtime.pyfunc import COLUMN, NUMBERS, OUTPUTS

FLAVOR_NAME = "isomax"
_MODEL_FILE = "model.onnx"
#: added to the package's own: what a model does not carry is found where isomax is installed
_EXTENDED = """
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
"""


def get_default_pip_requirements() -> list[str]:
    """What a model needs where it is loaded, beside MLflow; in the versions that are installed."""
    return [_get_pinned_requirement(name) for name in ("numpy", "onnxruntime", "pillow")]


def get_default_conda_env() -> dict[str, Any]:
    """The same as a Conda environment."""
    env: dict[str, Any] = _mlflow_conda_env(additional_pip_deps=get_default_pip_requirements())
    return env


def save_model(
    onnx_model: str | os.PathLike,
    path: str | os.PathLike,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: pd.DataFrame | np.ndarray | None = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Save an exported model to a folder, as an MLflow model.

    :param onnx_model: a file written by ``isomax export``
    :param path: the folder; empty or not there yet
    :param conda_env: a Conda environment, instead of pip requirements
    :param code_paths: more files or folders of code to store with the model
    :param mlflow_model: the MLflow model that this flavour is added to
    :param signature: made from the input example if not given
    :param input_example: a DataFrame with a column ``image`` of encoded images (bytes), or an
        array, uint8 ``[N, H, W, C]``: the model then takes such tensors instead (of decimals in
        JSON, MLflow's server drops the fraction). A small PNG if not given
    :param pip_requirements: instead of :func:`get_default_pip_requirements`
    :param extra_pip_requirements: in addition to them
    :param metadata: stored in the ``MLmodel`` file
    :raises isomax_adapters.runtime.ModelError: if the file was not exported by isomax
    """
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    scorer = Scorer(onnx_model)
    path = os.path.abspath(path)
    _validate_and_prepare_target_save_path(path)
    with tempfile.TemporaryDirectory() as place:
        code = _validate_and_copy_code_paths([_runtime(place), *(code_paths or [])], path)
    shutil.copyfile(onnx_model, os.path.join(path, _MODEL_FILE))

    mlflow_model = Model() if mlflow_model is None else mlflow_model
    example = _example() if input_example is None else input_example
    mlflow_model.signature = signature or _signature(scorer, example)
    _save_example(mlflow_model, example, path)
    if metadata is not None:
        mlflow_model.metadata = metadata
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=pyfunc.__name__,
        data=_MODEL_FILE,
        conda_env=_CONDA_ENV_FILE_NAME,
        python_env=_PYTHON_ENV_FILE_NAME,
        code=code,
    )
    mlflow_model.add_flavor(FLAVOR_NAME, data=_MODEL_FILE, code=code)
    if size := get_total_file_size(path):
        mlflow_model.model_size_bytes = size
    mlflow_model.save(os.path.join(path, MLMODEL_FILE_NAME))
    _save_environment(path, conda_env, pip_requirements, extra_pip_requirements)


def log_model(
    onnx_model: str | os.PathLike,
    name: str | None = None,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: pd.DataFrame | np.ndarray | None = None,
    await_registration_for: int | None = DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    run_id: str | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
) -> ModelInfo:
    """Log an exported model to the active run, and register it if a name for that is given.

    The arguments are those of :func:`save_model` and of MLflow's own ``log_model`` functions.

    :return: MLflow's description of the logged model; its ``model_uri`` loads it
    :raises isomax_adapters.runtime.ModelError: if the file was not exported by isomax
    """
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        flavor_name=FLAVOR_NAME,
        onnx_model=onnx_model,
        conda_env=conda_env,
        code_paths=code_paths,
        registered_model_name=registered_model_name,
        signature=signature,
        input_example=input_example,
        await_registration_for=await_registration_for,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        metadata=metadata,
        run_id=run_id,
        params=params,
        tags=tags,
        model_type=model_type,
        step=step,
        model_id=model_id,
    )


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    providers: str | Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    threads: int | None = None,
) -> Scorer:
    """Load a model of this flavour.

    :param model_uri: such as ``models:/NAME@champion``, ``runs:/RUN_ID/model`` or a folder
    :param dst_path: a folder to download into
    :param providers: as :class:`Scorer` takes them; those of ``ISOMAX_PROVIDERS`` if not given
    :param threads: as :class:`Scorer` takes them; ``ISOMAX_THREADS`` if not given
    :return: the model, ready to score
    """
    folder = _download_artifact_from_uri(artifact_uri=model_uri, output_path=dst_path)
    flavor = _get_flavor_configuration(model_path=folder, flavor_name=FLAVOR_NAME)
    return pyfunc.open_scorer(os.path.join(folder, flavor["data"]), providers, threads)


def _runtime(place: str) -> str:
    """The code that a model carries: the package, with the runtime and nothing else in it."""
    package = Path(isomax_adapters.__file__).parent
    carried = Path(place) / package.name
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package / "runtime", carried / "runtime", ignore=ignored)
    own = (package / "__init__.py").read_text(encoding="utf-8")
    (carried / "__init__.py").write_text(own + _EXTENDED, encoding="utf-8")
    return str(carried)


def _signature(scorer: Scorer, example: pd.DataFrame | np.ndarray) -> ModelSignature:
    if isinstance(example, np.ndarray):
        inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, scorer.channels))])
    else:
        # for "binary" MLflow's server decodes base64 itself, and one bad row fails the request;
        # a column of strings takes bytes as they are
        inputs = Schema([ColSpec(DataType.string, COLUMN)])
    return ModelSignature(
        inputs=inputs,
        outputs=Schema(
            # an image that cannot be decoded has none of these
            [ColSpec(DataType[k], n, required=n not in NUMBERS) for n, k in OUTPUTS.items()]
        ),
        params=ParamSchema([ParamSpec("alpha", DataType.double, scorer.alpha)]),
    )


def _example() -> pd.DataFrame:
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None]), axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pd.DataFrame({COLUMN: [file.getvalue()]})


def _save_environment(
    path: str,
    conda_env: Any,
    pip_requirements: list[str] | str | None,
    extra_pip_requirements: list[str] | str | None,
) -> None:
    """The files that say what the model needs, as MLflow's flavours write them."""
    if conda_env is None:
        default = get_default_pip_requirements() if pip_requirements is None else None
        conda_env, requirements, constraints = _process_pip_requirements(
            default, pip_requirements, extra_pip_requirements
        )
    else:
        conda_env, requirements, constraints = _process_conda_env(conda_env)
    with open(os.path.join(path, _CONDA_ENV_FILE_NAME), "w", encoding="utf-8") as file:
        yaml.safe_dump(conda_env, stream=file, default_flow_style=False)
    if constraints:
        write_to(os.path.join(path, _CONSTRAINTS_FILE_NAME), "\n".join(constraints))
    write_to(os.path.join(path, _REQUIREMENTS_FILE_NAME), "\n".join(requirements))
    _PythonEnv.current().to_yaml(os.path.join(path, _PYTHON_ENV_FILE_NAME))
