"""The range of grey values of a model folder, which takes no onnx to be read."""

import json
from pathlib import Path

from isomax_adapters.runtime.decoding import GreyRange, check_grey_range
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.folder import CONFIG


def grey_range_of(folder: Path) -> GreyRange | None:
    """The range of grey values that a model folder was trained with; ``None`` for that of their
    depth.

    :raises InputError: if it is none
    """
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        return check_grey_range(content.get("grey_range"))
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
