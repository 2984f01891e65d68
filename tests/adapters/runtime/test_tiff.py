"""TIFF as tifffile writes it: read right, or refused in one line."""

import io
import random
from itertools import product

import numpy as np
import pytest

from isomax_adapters.runtime.decoding import RGB, open_image

tifffile = pytest.importorskip("tifffile", reason="tifffile writes the files")
pytest.importorskip("imagecodecs", reason="imagecodecs compresses them")

HEIGHT, WIDTH = 37, 45
BANDS = {  # how many, photometric interpretation, what those beyond are
    "grey": (1, "minisblack", None),
    "white is zero": (1, "miniswhite", None),
    "grey and alpha": (2, "minisblack", "unassalpha"),
    "grey and premultiplied alpha": (2, "minisblack", "assocalpha"),
    "RGB": (3, "rgb", None),
    "RGB and alpha": (4, "rgb", "unassalpha"),
    "RGB and premultiplied alpha": (4, "rgb", "assocalpha"),
    "RGB and anything": (4, "rgb", "unspecified"),
    "CMYK": (4, "separated", None),
    "CMYK and alpha": (5, "separated", "unassalpha"),
    "L*a*b*": (3, "cielab", None),
    "YCbCr": (3, "ycbcr", None),
}
COMPRESSIONS = (None, "packbits", "lzw", "deflate", "lzma")
#: (type, planes, compression, byte order, tile, rows of a strip, predictor)
WAYS = [
    way
    for way in product(
        ("u1", "u2"), ("contig", "separate"), COMPRESSIONS, "<>", (None, (16, 32)), (None, 5),
        (False, True),
    )
    if not (way[4] and way[5]) and not (way[6] and way[2] in (None, "packbits"))
]  # fmt: skip
FEW = 40  # of each kind; all of them take half a minute


def written(name, way):
    """The values ``[H, W, bands]``, and a file of them."""
    kind, planes, compression, order, tile, rows, predictor = way
    count, photometric, extra = BANDS[name]
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (HEIGHT, WIDTH, count))
    if extra == "assocalpha":
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    values = values.astype(kind)
    stored = values if planes == "contig" else np.moveaxis(values, 2, 0)
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        values[..., 0] if count == 1 else stored,
        photometric=photometric,
        planarconfig=None if count == 1 else planes,
        extrasamples=None if extra is None else [extra],
        compression=compression,
        byteorder=order,
        tile=tile,
        rowsperstrip=rows,
        predictor=predictor,
    )
    return values, file


def colours(name, values):
    """What they mean, as RGB of 8 bits over white."""
    _, photometric, extra = BANDS[name]
    eight = (values >> 8 if values.dtype == np.uint16 else values).astype(float)
    if photometric == "separated":
        seen = (255 - eight[..., :3]) * (255 - eight[..., 3:4]) / 255
    else:
        seen = eight[..., :3] if photometric == "rgb" else np.repeat(eight[..., :1], 3, axis=2)
    if photometric == "miniswhite":
        seen = 255 - seen
    if extra == "unassalpha":
        seen = (eight[..., -1:] * seen + (255 - eight[..., -1:]) * 255) / 255
    if extra == "assocalpha":
        seen = seen + 255 - eight[..., -1:]
    return seen


@pytest.mark.parametrize("name", BANDS)
def test_what_tifffile_writes_is_read_right_or_refused(name):
    single = BANDS[name][0] == 1
    ways = [way for way in WAYS if not (single and way[1] == "separate")]
    said: dict[tuple, str] = {}
    together = {}  # of spaces that are not computed here
    for way in random.Random(name).sample(ways, min(FEW, len(ways))):
        values, file = written(name, way)
        try:
            with open_image(file) as image:
                found = RGB.array(image).astype(float)
        except Exception as error:  # Pillow's readers raise whatever they please
            said[way] = str(error)
            continue
        if name in ("L*a*b*", "YCbCr"):
            expected = together.setdefault(way[0], found)
        else:
            expected = colours(name, values)
        assert np.abs(found - expected).max() <= 2, way  # rounded twice
    assert all(reason and "\n" not in reason for reason in said.values())


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [("RGB", "u2", None), ("CMYK", "u2", None), ("grey and alpha", "u1", "deflate")],
)
def test_separate_planes_that_pillow_misreads_are_refused_by_their_tag(name, kind, compression):
    _, file = written(name, (kind, "separate", compression, "<", None, None, False))
    with open_image(file) as image, pytest.raises(ValueError, match=r"PlanarConfiguration 2, .*;"):
        RGB(image)


@pytest.mark.parametrize("name", ["grey", "RGB", "RGB and alpha", "CMYK"])
def test_what_is_common_is_read(name):
    for kind, compression in product(("u1",) if name == "CMYK" else ("u1", "u2"), COMPRESSIONS):
        values, file = written(name, (kind, "contig", compression, "<", None, None, False))
        with open_image(file) as image:
            assert np.abs(RGB.array(image) - colours(name, values)).max() <= 2
