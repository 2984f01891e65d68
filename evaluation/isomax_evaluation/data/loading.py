"""Images in batches."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from isomax_evaluation.data.images import Images, Transformed, UnreadableError
from isomax_evaluation.output.errors import InputError

BATCH_SIZE = 64
# Detectors that take gradients keep all that a network computes of a batch, and some a gradient of
# every weight for each image: for EfficientNet-Lite0 0.3 GB an image of 224 x 224.
PIXELS_AT_ONCE = 8 * 224 * 224
_UNEQUAL = "stack expects each tensor to be equal size, but"  # PyTorch's words


def loader_of(transform: Any, workers: int, *sets: Images) -> DataLoader:
    """Batches of (tensors, labels) of one set after the other, in order; the larger the images, the
    fewer at a time.

    :param transform: from an image to a tensor
    :param workers: processes that decode
    """
    together: ConcatDataset[tuple[Tensor, int]] = ConcatDataset(
        [Transformed(images, transform) for images in sets]
    )
    return DataLoader(
        together,
        batch_size=_batch_size(together[0][0]) if len(together) else 1,
        num_workers=max(workers_for(images, workers) for images in sets),
    )


def _batch_size(image: Tensor) -> int:
    """How many images of this size every detector has memory for."""
    return max(1, min(BATCH_SIZE, PIXELS_AT_ONCE // image.shape[-2:].numel()))


def workers_for(images: Images, workers: int) -> int:
    """Decoding pays for processes of its own; images in memory do not."""
    return 0 if images.in_memory else workers


@contextmanager
def decoding_errors() -> Iterator[None]:
    """What goes wrong where images are decoded, in a process of its own or not, in one line.

    :raises InputError: for an image that could be read before, or a process that has ended
    """
    try:
        yield
    except UnreadableError as error:
        # of another process, it comes with the traceback from there
        reason = str(error).strip().rpartition(f"{UnreadableError.__name__}: ")[2]
        raise InputError(
            f"{reason}; put it back as it was and run the same command again, which goes on from "
            "what is finished"
        ) from error
    except (RuntimeError, EOFError, ConnectionError) as error:
        if _UNEQUAL in str(error):
            sizes = str(error).partition(_UNEQUAL)[2].strip()
            raise InputError(
                f"images of one batch have different sizes, {sizes}; have the data set's transform "
                "make them one size"
            ) from error
        if not _of_a_worker(error):
            raise
        _let_go(error)
        lines = [*str(error).strip().splitlines(), type(error).__name__]
        raise InputError(
            f"a process that decodes images has ended ({lines[-2 if 'Caught' in lines[0] else 0]}),"
            " most often since memory or shared memory is full; give fewer --workers and run the "
            "same command again, which goes on from what is finished"
        ) from None


def _let_go(error: BaseException) -> None:
    """End the loader that an error holds on to; PyTorch would complain of its process once more,
    out of a signal's handler."""
    handled = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if handled else None
    for kept in (error, error.__context__):
        traceback.clear_frames(None if kept is None else kept.__traceback__)
    if handled:
        signal.signal(signal.SIGCHLD, before)


def _of_a_worker(error: BaseException) -> bool:
    """Whether PyTorch's loader raises it for one of its processes: while it waits for a batch, or
    anywhere, since a signal tells it."""
    modules = [
        frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    text = str(error)
    ended = "DataLoader worker (pid" in text
    no_room = "DataLoader worker" in text and "memory" in text
    return (
        ended
        or no_room
        or (not isinstance(error, RuntimeError) and "torch.utils.data.dataloader" in modules)
    )
