"""The stem that 32x32 images want."""

from typing import Any

from torch import nn

from isomax_adapters.runtime.errors import InputError


def use_small_image_stem(model: nn.Module) -> nn.Module:
    """Give a ResNet-like timm model a 3x3 stride-1 first convolution and no pooling, in place.

    As the CIFAR ResNets of the papers. The first convolution starts afresh; pretrained weights of
    the layers behind it stay.

    :param model: a timm model whose first convolution has stride 2, followed by a pooling layer
        called ``maxpool`` or ``pool0`` or by none
    :return: the same model
    :raises InputError: if the model has no such stem
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    path = cfg.get("first_conv")
    path = path if isinstance(path, str) else ""
    name = cfg.get("architecture", type(model).__name__)
    first = model.get_submodule(path)
    if not isinstance(first, nn.Conv2d) or first.stride != (2, 2):
        raise InputError(
            f"{name} has no stride-2 first convolution to replace; small_images is for "
            "ResNet-like backbones such as resnet18, resnet34 or densenet121"
        )
    parent_path, _, child = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    new = nn.Conv2d(
        first.in_channels,
        first.out_channels,
        kernel_size=3,
        padding=1,
        bias=first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(parent, child, new)
    for pool in ("maxpool", "pool0"):
        if isinstance(getattr(parent, pool, None), nn.Module):
            setattr(parent, pool, nn.Identity())
    return model
