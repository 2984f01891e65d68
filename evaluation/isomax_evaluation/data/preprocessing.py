"""What is done to an image before a model sees it."""

from typing import Any

import timm.data
from torch import nn


def preprocessing_of(network: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """A timm model's preprocessing, as ``timm.data.create_transform`` takes it.

    :param image_size: input height and width, if not the model's own
    """
    args: dict[str, Any] = {"img_size": image_size}
    if image_size is not None and image_size <= 64:
        args["crop_pct"] = 1.0  # small images have no border to spare
    return dict(timm.data.resolve_model_data_config(network, args))
