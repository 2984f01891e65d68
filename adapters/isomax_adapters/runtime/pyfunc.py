"""The python_function view of a model: a row of answers for each image of a table or an array.

MLflow's models name this module as their loader. MLflow and pandas are there where that is called,
and nowhere else in the runtime; so they are imported in functions.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isomax_adapters.runtime.scorer import Result, Scorer

if TYPE_CHECKING:
    import pandas as pd

COLUMN = "image"
#: what is said of an image -> MLflow's name of its type
OUTPUTS = {
    "label": "long",
    "class_name": "string",
    "confidence": "double",
    "score": "double",
    "p_value": "double",
    "is_ood": "boolean",
    "error": "string",
}
NUMBERS = ["confidence", "score", "p_value"]
_DATA_URL = re.compile(r"data:([^,]*),", re.IGNORECASE)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Called by ``mlflow.pyfunc.load_model``."""
    return PyfuncModel(open_scorer(path))


def open_scorer(path: str, providers: Any = None, threads: int | None = None) -> Scorer:
    """A scorer; what serves and what runs on Spark can be told by the environment only.

    :param providers: as :class:`Scorer` takes them; those of ``ISOMAX_PROVIDERS`` if not given
    :param threads: as :class:`Scorer` takes them; ``ISOMAX_THREADS`` if not given
    :raises mlflow.exceptions.MlflowException: if ``ISOMAX_THREADS`` is no number of at least 1
    """
    names = os.environ.get("ISOMAX_PROVIDERS", "").split(",")
    given = os.environ.get("ISOMAX_THREADS", "").strip()
    if given and not (given.isdecimal() and int(given) > 0):
        raise _invalid(f"ISOMAX_THREADS is {given!r}; expected a number of at least 1")
    return Scorer(
        path,
        providers or [name.strip() for name in names if name.strip()],
        threads=threads or (int(given) if given else None),
    )


class PyfuncModel:
    """What ``mlflow.pyfunc.load_model`` and MLflow's server call."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def get_raw_model(self) -> Scorer:
        return self.scorer

    def predict(
        self, model_input: pd.DataFrame | np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Label, class name, confidence, score, p-value and verdict of each image.

        An image that cannot be decoded is a row with ``error`` set, and without confidence, score
        and p-value.

        :param model_input: a DataFrame with a column of encoded images (bytes, base64 text or
            ``data:`` URLs), or an array, uint8 ``[N, H, W, C]``
        :param params: ``alpha``, another false-alarm rate than the model's own
        :return: a row for each image, under the index of the DataFrame
        """
        scorer = self._at((params or {}).get("alpha", self.scorer.alpha))
        inputs = _inputs(model_input, self.scorer.channels)
        # one by one: what is said of an image depends, in the last bit, on the size of its batch
        results = scorer.stream(
            (item for item in inputs if not isinstance(item, Result)), batch_size=1
        )
        answers = [item if isinstance(item, Result) else next(results) for item in inputs]
        return _frame(answers, None if isinstance(model_input, np.ndarray) else model_input.index)

    def _at(self, alpha: Any) -> Scorer:
        if alpha == self.scorer.alpha:
            return self.scorer
        if alpha is None:  # JSON's null
            raise _invalid(
                f"alpha is null; expected a fraction in (0, 1), or no alpha for the model's own, "
                f"{self.scorer.alpha}"
            )
        try:
            return self.scorer.at(alpha)
        except ValueError as error:
            raise _invalid(str(error)) from error


def _inputs(
    model_input: pd.DataFrame | np.ndarray, channels: int
) -> Sequence[bytes | np.ndarray | Result]:
    """What can be scored, and what is to be said of the rest."""
    if hasattr(model_input, "columns"):
        if len(model_input.columns) != 1 and COLUMN not in model_input:
            raise _invalid(
                f"the columns are {list(model_input.columns)}; expected one column of encoded "
                f"images, or one that is called {COLUMN!r}"
            )
        column = COLUMN if COLUMN in model_input else model_input.columns[0]
        return [_encoded(item) for item in model_input[column]]
    images = np.asarray(model_input)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
        raise _invalid(
            f"the input is {images.dtype} of shape {images.shape}; expected uint8 "
            f"[N, H, W, {channels}], or a DataFrame with a column {COLUMN!r} of encoded images"
        )
    return list(images)


def _encoded(item: Any) -> bytes | np.ndarray | Result:
    """An image for the scorer. Text is base64, as JSON holds no bytes, and never a path."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, np.ndarray):
        return item
    if not isinstance(item, str):
        return Result("", error=f"{type(item).__name__}, not the bytes of an image")
    if url := _DATA_URL.match(item):
        if not url[1].lower().endswith(";base64"):
            return Result("", error=f"a URL that begins with {url[0][:60]!r}, not with base64 data")
        item = item[url.end() :]
    try:
        return base64.b64decode("".join(item.split()), validate=True)
    except ValueError as error:
        return Result("", error=f"text that is neither base64 nor a data URL of it: {error}")


def _frame(results: list[Result], index: pd.Index | None) -> pd.DataFrame:
    import pandas as pd
    from mlflow.types import DataType

    rows = [[getattr(result, name) for name in OUTPUTS] for result in results]
    frame = pd.DataFrame(rows, columns=list(OUTPUTS), index=index)
    frame = frame.astype({name: DataType[kind].to_pandas() for name, kind in OUTPUTS.items()})
    if any(result.error for result in results):
        # NaN is no JSON: a client could not read the answer
        numbers = frame[NUMBERS].astype(object)
        frame[NUMBERS] = numbers.where(numbers.notna(), None)
    return frame


def _invalid(message: str) -> Exception:
    """What MLflow's server answers with status 400."""
    from mlflow.exceptions import MlflowException

    return MlflowException.invalid_parameter_value(message)
