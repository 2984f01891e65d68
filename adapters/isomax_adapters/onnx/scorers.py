"""Which detectors can be part of a file, and which are too large."""

import torch
from torch import nn

from isomax_adapters.pytorch_ood import Parts
from isomax_adapters.pytorch_ood.entries import WIRINGS

LARGEST = 2**31 - 2**24  # bytes of an ONNX file


def why_not_exported(name: str) -> str | None:
    """Why a detector cannot be part of a file, and which can be in its place; ``None`` if it can,
    as far as that is known before it is fitted."""
    reason = WIRINGS[name].no_file
    return f"{name} cannot be exported: {reason}" if reason else None


def why_too_large(name: str, size: int, network: int) -> str | None:
    """Why a fitted detector does not fit into a file; ``None`` if it does.

    :param size: of the detector, bytes
    :param network: of the network beside it
    """
    if size + network <= LARGEST:
        return None
    smaller = "compare with fewer images (--bank)", "MahalanobisPP is smaller"
    return (
        f"{name} cannot be exported: it holds {size / 1e9:.1f} GB beside {network / 1e9:.2f} of "
        f"the network, and a file has at most 2; {smaller[not WIRINGS[name].bank]}"
    )


def why_network_too_large(model: nn.Module) -> str | None:
    """Why a network alone does not fit into a file; ``None`` if it does."""
    size = _bytes_of(model)
    if size <= LARGEST:
        return None
    return (
        f"the network cannot be exported: it holds {size / 1e9:.2f} GB, and a file has at most "
        f"{LARGEST / 1e9:.2f}; choose a smaller architecture"
    )


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def obstacle_to_export(name: str, parts: Parts, input_size: tuple[int, int, int]) -> str | None:
    """Why no file of this model can hold a detector, before that is fitted."""
    if reason := why_not_exported(name) or why_network_too_large(parts.model):
        return reason
    with torch.no_grad():
        width = parts.encode(torch.zeros(1, *input_size, device=parts.device)).shape[1]
    return why_too_large(name, WIRINGS[name].held(parts.num_classes, width), _bytes_of(parts.model))
