"""Small images kept decoded in the device's memory, and augmented there."""

from collections.abc import Iterable, Iterator
from typing import Any

import timm.data
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from isomax_evaluation.data.images import Images, Transformed


class Decoded:
    """Images decoded, resized and cropped once, as bytes in the memory of a device.

    Iterating gives normalised batches of (images, labels) in order, as evaluation wants them.
    """

    def __init__(
        self,
        images: Images,
        config: dict[str, Any],
        device: torch.device,
        batch_size: int,
        workers: int = 0,
    ) -> None:
        """
        :param config: preprocessing, as ``timm.data.create_transform`` takes it
        :param batch_size: of the batches in order
        :param workers: processes that decode
        """
        # timm's transform for evaluation, up to where it makes floats of the pixels
        *geometry, _, _ = timm.data.create_transform(**config).transforms
        loader = DataLoader(
            Transformed(images, transforms.Compose([*geometry, transforms.PILToTensor()])),
            batch_size=256,
            num_workers=workers,
        )
        self.pixels = torch.cat([batch for batch, _ in loader]).to(device)
        self.labels = torch.as_tensor(images.labels).to(device)
        self.batch_size = batch_size
        self.mean, self.std = (
            torch.tensor(config[name], device=device).mul(255).view(-1, 1, 1)
            for name in ("mean", "std")
        )

    def normalised(self, pixels: Tensor) -> Tensor:
        """Bytes as the model wants them."""
        return (pixels.float() - self.mean) / self.std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in zip(
            self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True
        ):
            yield self.normalised(pixels), labels


class AugmentedBatches:
    """Training batches of decoded images: padded, cropped and flipped on the device.

    What is drawn depends on PyTorch's seed at the start of the epoch, not on the device.
    """

    def __init__(
        self, images: Decoded, batches: Iterable[list[int]], padding: int, hflip: float
    ) -> None:
        """
        :param batches: positions of the images of each batch
        :param padding: black border that crops may reach into; 0 leaves images where they are
        :param hflip: probability of a horizontal flip
        """
        self.images, self.batches = images, batches
        self.padding, self.hflip = padding, hflip

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.images
        # of its own, so that nothing else that draws moves the crops
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for batch in self.batches:
            chosen = torch.tensor(batch, device=images.pixels.device)
            pixels = crop_and_flip(images.pixels[chosen], self.padding, self.hflip, generator)
            yield images.normalised(pixels), images.labels[chosen]


def crop_and_flip(
    pixels: Tensor, padding: int, hflip: float, generator: torch.Generator | None = None
) -> Tensor:
    """Pad each image of a batch :math:`N \\times 3 \\times H \\times W` with black, crop it to its
    size at a place of its own, and flip it with a probability."""
    count, _, height, width = pixels.shape
    device = pixels.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    top, left = offsets.to(device)
    flip = (torch.rand(count, 1, generator=generator) < hflip).to(device)
    columns = torch.arange(width, device=device).expand(count, width)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flip, columns.flip(1), columns)
    padded = F.pad(pixels, (padding,) * 4)
    each = torch.arange(count, device=device)[:, None, None]
    # indices around the channels move these last
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
