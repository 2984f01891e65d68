"""What is done to an image before a model sees it."""

import logging
from collections.abc import Mapping
from typing import Any

import timm.data
from torch import nn

from isomax_evaluation.output.errors import input_errors

# that three means become one is said below, not at every call
logging.getLogger("timm.data.model_config").setLevel(logging.ERROR)


def preprocessing_of(network: nn.Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A timm model's preprocessing, as ``timm.data.create_transform`` takes it.

    Of as many channels as the model takes: a mean and deviation of three channels become their
    means.

    :param given: what is to be other than the model's own, by timm's names: ``img_size`` (one
        number, or height and width), ``crop_pct``, ``crop_mode``, ``interpolation``, ``mean``,
        ``std``, ``in_chans``; ``None`` leaves it
    :raises InputError: if the model is built for another size or number of channels
    """
    args = {name: value for name, value in (given or {}).items() if value is not None}
    size = args.get("img_size")
    if size is not None and (size if isinstance(size, int) else max(size)) <= 64:
        args.setdefault("crop_pct", 1.0)  # small images have no border to spare
    with input_errors(AssertionError):
        return dict(timm.data.resolve_input_data_config(network, args))
