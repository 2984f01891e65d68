"""Batch norm of a pretrained network: its running statistics, kept while the rest is trained."""

from typing import Any

from torch import nn


def layers_with_statistics(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that keep running statistics of what passes them."""
    return [
        layer
        for layer in model.modules()
        if any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
    ]


def hold_statistics(model: nn.Module) -> nn.Module:
    """Have batch norm use its running statistics in training mode too, and leave them as they are.

    Its scales and shifts are trained. For loops that call ``model.train()`` themselves.

    :param model: changed in place
    :return: the same model
    """
    for layer in layers_with_statistics(model):
        layer.register_forward_pre_hook(_evaluate)
    return model


def _evaluate(layer: nn.Module, inputs: Any) -> None:
    layer.eval()
