"""What a user gives to be scored, as an image: files, encoded bytes, arrays, PIL images."""

import inspect
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Any

import numpy as np
from PIL import Image

from isomax_adapters.runtime.decoding import CHANNELS, Decoding, from_array, open_image
from isomax_adapters.runtime.errors import InputError

Encoded = bytes | bytearray | memoryview
Input = str | os.PathLike | Encoded | IO[bytes] | np.ndarray | Image.Image

_LIMIT = threading.Lock()
#: an object that is given several times is read by one thread after the other: what decodes late,
#: or has a place that it is read from, is not made for two. Others that share a lock wait for once
_TURNS = [threading.Lock() for _ in range(61)]
LONGEST = 300  # characters of a message


class UnusableError(InputError):
    """An input that is no image, or one that is refused; the message is the row's error."""


def is_one(given: Any) -> bool:
    """Whether something is one input, rather than several."""
    if isinstance(given, np.ndarray):  # of names it is several
        return given.ndim < 4 and given.dtype.kind not in "OSU"
    return isinstance(given, (str, os.PathLike, Image.Image)) or _is_encoded(given)


def check_several(given: Any) -> None:
    """Refuse what would be taken apart into what is no input.

    :raises TypeError: naming what was given, and the way out
    """
    kind = type(given).__name__
    if is_one(given):
        raise TypeError(f"inputs is one {kind}; give a list of them, or use score()")
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        raise TypeError(f"inputs is a {kind}; give its images, such as table['path']")
    if not hasattr(given, "__iter__"):
        raise TypeError(f"inputs is {kind}; expected images, or an iterable of them")


def name_of(number: int, source: Any) -> str:
    """The path of an input, or what it is and which."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, np.ndarray):
        return f"array {number}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"bytes {number}"
    name = getattr(source, "filename" if isinstance(source, Image.Image) else "name", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes)) and name else f"input {number}"


def read(
    source: Any,
    decoding: Decoding,
    max_pixels: int,
    enter: Callable[[int, int], None],
) -> Image.Image:
    """An input as 8 bits of the channels that a model takes.

    :param enter: called with height and width before the pixels are decoded
    :raises UnusableError: if it is no image
    :raises Exception: whatever Pillow's readers raise
    """
    if isinstance(source, np.ndarray):
        image: Any = nullcontext(_of_array(source, decoding.channels))
    elif isinstance(source, Image.Image):
        image = nullcontext(source)
    else:
        image = _opened(source, max_pixels)
    with image as found:
        width, height = found.size
        if width * height > max_pixels and not isinstance(source, np.ndarray):
            raise UnusableError(f"{width}x{height} pixels, more than {max_pixels} allowed")
        enter(height, width)
        with _turn(source):
            return decoding(found)


def why(error: BaseException, source: Any) -> str:
    """What is said of an input that could not be read, in one line."""
    if isinstance(error, UnusableError):
        return str(error)
    reason = " ".join(str(error).split())
    if _is_encoded(source):  # without its address in memory
        reason = reason.partition(" <_io.")[0]
    return f"{type(error).__name__}: {reason}"[:LONGEST]


def _of_array(array: np.ndarray, channels: int) -> Image.Image:
    shape = array.shape
    shaped = array.ndim == 2 or (array.ndim == 3 and shape[2] in CHANNELS)
    if array.dtype != np.uint8 or not shaped:
        raise UnusableError(
            f"{array.dtype} of shape {shape}, not uint8 [H, W, {channels}], nor [H, W] or "
            "[H, W, 1, 3 or 4]"
        )
    if not array.size:
        raise UnusableError("an array without pixels")
    image = from_array(array if array.ndim == 3 else array[..., None])
    if channels != 4 and image.mode == "RGBX":  # an alpha channel, as in a file
        return Image.frombytes("RGBA", image.size, image.tobytes())
    return image


def _opened(source: Any, max_pixels: int) -> AbstractContextManager[Image.Image]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise UnusableError("no bytes at all")
        file: Any = io.BytesIO(bytes(source))
    elif hasattr(source, "read"):
        content = _content(source)
        if inspect.iscoroutine(content):  # of FastAPI's UploadFile
            content.close()
            raise UnusableError(f"{type(source).__name__} is read with await; give its .file")
        if not isinstance(content, bytes):
            raise UnusableError("a file of text; open it in binary mode")
        if not content:
            raise UnusableError("nothing left to read: an empty file, or one to seek(0) first")
        file = io.BytesIO(content)
    elif isinstance(source, (str, os.PathLike)):
        file = os.fsdecode(source)
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would never end
            raise UnusableError("not a regular file")
    else:
        raise UnusableError(
            f"{type(source).__name__} is no path, bytes, binary file, PIL image or uint8 array"
        )
    with _no_lower_limit(max_pixels):
        return open_image(file)


def _content(file: IO[bytes]) -> Any:
    """All of a file, wherever it was read to, as Pillow does; of a stream, what is left."""
    with _turn(file):
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        return file.read()


def _turn(given: Any) -> threading.Lock:
    return _TURNS[id(given) // 16 % len(_TURNS)]


@contextmanager
def _no_lower_limit(max_pixels: int) -> Iterator[None]:
    """Without Pillow's own limit, which is the process's, where ours is higher."""
    if Image.MAX_IMAGE_PIXELS is None or max_pixels <= Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _is_encoded(given: Any) -> bool:
    return isinstance(given, (bytes, bytearray, memoryview)) or hasattr(given, "read")
