"""Does an ONNX file refer to other files? Told from its bytes, before anything is loaded.

Needs no onnx and no particular ONNX Runtime: some versions follow such references out of the
model's folder.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

# the messages of onnx.proto that lead to tensors: field number -> message
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor


def refers_to_other_files(path: Path) -> bool:
    """Whether any tensor of the model lies outside of the file.

    :raises ValueError: if the file is no protocol buffer message, or nested too deeply
    """
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[4:8] == b"ORTM":  # ONNX Runtime would read it as such, whatever else it is
                raise ValueError("it is in ONNX Runtime's own format")
            return _external(data, 0, len(data), "model")
        except RecursionError as error:
            raise ValueError("graphs are nested too deeply") from error


def _external(data: mmap.mmap, start: int, end: int, message: str) -> bool:
    for number, value, size in _fields(data, start, end):
        if message == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value):
                return True
            continue
        inner = _FIELDS.get(message, {}).get(number)
        if inner and size is not None and _external(data, value, value + size, inner):
            return True
    return False


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Number and value of each field; for nested ones the value is where they start, and their
    size."""
    position = start
    while position < end:
        start = position
        key, position = _varint(data, position, end)
        if key > 0xFFFFFFFF or position - start > 5:  # readers differ in which field that is
            raise ValueError("no protocol buffer message: a field number is too large")
        kind = key & 7
        size: int | None = None
        if kind == 0:
            value, position = _varint(data, position, end)
        elif kind in (1, 5):
            value, position = 0, position + (8 if kind == 1 else 4)
        elif kind == 2:
            size, value = _varint(data, position, end)
            position = value + size
        else:
            raise ValueError(f"no protocol buffer message: wire type {kind}")
        if position > end:
            raise ValueError("the file is cut off")
        yield key >> 3, value, size


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("the file is cut off")
