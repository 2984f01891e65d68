"""Image files as other programs write them, and Pillow does not."""

import struct
import zlib

import numpy as np

_TAGS = {"compression": 259, "fill_order": 266, "planar": 284, "extra": 338, "sample_format": 339}


def tiff(data, size, bits=(8,), photometric=1, order="<", **more):
    """A TIFF file of one strip.

    :param size: width and height
    :param photometric: 0 white is zero, 1 black is zero, 2 RGB
    """
    if more.get("compression") == 8:
        data = zlib.compress(data)
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: len(bits), 278: size[1], 279: len(data)}
    tags |= {_TAGS[name]: value for name, value in more.items()}
    data += b"\0" * (len(data) % 2)
    ends_at = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries, beyond = b"", b""
    for number, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind, letter = (4, "L") if number in (256, 257, 273, 278, 279) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            beyond += content + b"\0" * (len(content) % 2)
            content = struct.pack(order + "L", ends_at + len(beyond) - len(content))
        entries += struct.pack(order + "HHL", number, kind, len(values)) + content.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8 + len(data))
    return start + data + struct.pack(order + "H", len(tags)) + entries + bytes(4) + beyond


def twelve_bits(values):
    """Rows of 12-bit values, each row filled up to whole bytes."""
    rows = ("".join(f"{value:012b}" for value in row) for row in values)
    rows = (row + "0" * (-len(row) % 8) for row in rows)
    return b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)


def png(rows, size, depth=8, colour=0, **chunks):
    """A PNG file.

    :param rows: the bytes of each row
    :param colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha
    :param chunks: others, such as tRNS
    """
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"".join(b"\0" + r for r in rows))}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name.encode()
        + content
        + struct.pack(">I", zlib.crc32(name.encode() + content))
        for name, content in (parts | {"IEND": b""}).items()
    )


def pgm(values, highest):
    """A PGM file of two bytes per value."""
    height, width = values.shape
    return f"P5 {width} {height} {highest}\n".encode() + np.asarray(values, ">u2").tobytes()
