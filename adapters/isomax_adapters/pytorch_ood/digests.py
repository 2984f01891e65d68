"""What tells a model from others."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Digests:
    """What tells a model from others."""

    whole: str
    backbone: str  #: without its heads


def digests_of_weights(model: nn.Module, heads: Sequence[nn.Module] = ()) -> Digests:
    """24 hexadecimal digits that change with the names, shapes and values of a model's tensors, and
    with its kind; and as many that do not change with those of its heads."""
    of_heads = {id(t) for head in heads for t in head.state_dict(keep_vars=True).values()}
    whole = hashlib.sha256(type(model).__name__.encode())
    backbone = whole.copy()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        for found in (whole,) if id(tensor) in of_heads else (whole, backbone):
            found.update(described)
            found.update(flat.view(torch.uint8).numpy())
    return Digests(whole.hexdigest()[:24], backbone.hexdigest()[:24])
