"""Images in batches."""

from typing import Any

from torch.utils.data import ConcatDataset, DataLoader

from isomax_evaluation.data.images import Images, Transformed


def loader_of(transform: Any, workers: int, *sets: Images, batch_size: int = 64) -> DataLoader:
    """Batches of (tensors, labels) of one set after the other, in order.

    :param transform: from an image to a tensor
    :param workers: processes that decode
    """
    return DataLoader(
        ConcatDataset([Transformed(images, transform) for images in sets]),
        batch_size=batch_size,
        num_workers=max(workers_for(images, workers) for images in sets),
    )


def workers_for(images: Images, workers: int) -> int:
    """Decoding pays for processes of its own; images in memory do not."""
    return 0 if images.in_memory else workers
