"""Feature maps of a training set: on disk, since they do not fit into memory."""

from pathlib import Path

import numpy as np
from torch import Tensor


class MapsOnDisk:
    """Feature maps :math:`N \\times C \\times H \\times W`, appended batch by batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def append(self, maps: Tensor) -> None:
        """Add a batch :math:`B \\times C \\times H \\times W`."""
        self.shape = tuple(maps.shape[1:])
        self.count += len(maps)
        with self.path.open("ab") as file:
            file.write(maps.detach().float().cpu().contiguous().numpy().tobytes())

    def array(self) -> np.ndarray:
        """All of them, read as they are looked at."""
        return np.memmap(self.path, np.float32, "r", shape=(self.count, *self.shape))
