"""The same picture has the same pixels, however it is stored; or the tag is named."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFile, UnidentifiedImageError

from isomax_adapters.runtime import decoding
from isomax_adapters.runtime.decoding import RGB, Decoding, from_array, open_image

from .encoded import pgm, png, tiff, twelve_bits

GREY = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


def read(data, channels=3, grey_range=None):
    with open_image(io.BytesIO(data)) as image:
        return Decoding(channels, grey_range).array(image)


def deep(grey, bits):
    """Values of more bits with these as the upper eight, and as bright a white."""
    wide = grey.astype(np.int64)
    return wide << (bits - 8) | wide >> (16 - bits)


def size_of(grey):
    return grey.shape[::-1]


def little(values):
    return np.asarray(values, "<u2").tobytes()


def big(values):
    return np.asarray(values, ">u2").tobytes()


SAME = {
    "8 bits": lambda g: tiff(g.tobytes(), size_of(g)),
    "8 bits, white is zero": lambda g: tiff((255 - g).tobytes(), size_of(g), photometric=0),
    "12 bits": lambda g: tiff(twelve_bits(deep(g, 12)), size_of(g), (12,)),
    "12 bits, deflated": lambda g: tiff(twelve_bits(deep(g, 12)), size_of(g), (12,), compression=8),
    "16 bits": lambda g: tiff(little(deep(g, 16)), size_of(g), (16,)),
    "16 bits, big-endian": lambda g: tiff(big(deep(g, 16)), size_of(g), (16,), order=">"),
    "16 bits, white is zero": lambda g: tiff(
        little(65535 - deep(g, 16)), size_of(g), (16,), photometric=0
    ),
    "16 bits, white is zero, deflated": lambda g: tiff(
        little(65535 - deep(g, 16)), size_of(g), (16,), photometric=0, compression=8
    ),
    "PGM of 16 bits": lambda g: pgm(deep(g, 16), 65535),
    "PGM of 12 bits": lambda g: pgm(deep(g, 12), 4095),
    "plain PGM of 12 bits": lambda g: (
        f"P2 {g.shape[1]} {g.shape[0]} 4095 {' '.join(map(str, deep(g, 12).ravel()))}".encode()
    ),
    "PNG of 16 bits": lambda g: png(map(big, deep(g, 16)), size_of(g), 16),
    "PNG of 16-bit colours": lambda g: png(
        map(big, np.stack([deep(g, 16)] * 3, axis=2)), size_of(g), 16, 2
    ),
    "TIFF of 16-bit colours": lambda g: tiff(
        little(np.stack([deep(g, 16)] * 3, axis=2)), size_of(g), (16,) * 3, 2
    ),
}
IN_SIXTEEN = {
    "PNG": (0, lambda v: png(map(big, v), size_of(v), 16)),
    "TIFF": (0, lambda v: tiff(little(v), size_of(v), (16,))),
    "TIFF, white is zero": (0, lambda v: tiff(little(4095 - v), size_of(v), (16,), photometric=0)),
    "PGM": (0, lambda v: pgm(v, 65535)),
    "signed TIFF": (-1000, lambda v: tiff(
        np.asarray(v - 1000, "<i2").tobytes(), size_of(v), (16,), sample_format=2)),
    "TIFF of 32 bits": (70_000, lambda v: tiff(
        np.asarray(v + 70_000, "<u4").tobytes(), size_of(v), (32,))),
}  # fmt: skip


@pytest.mark.parametrize("stored", SAME)
@given(GREY)
@settings(deadline=None, max_examples=25)
def test_the_same_picture_has_the_same_pixels(stored, grey):
    assert np.array_equal(read(SAME[stored](grey), channels=1)[..., 0], grey)
    assert np.array_equal(read(SAME[stored](grey)), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("stored", IN_SIXTEEN)
@given(GREY)
@settings(deadline=None, max_examples=25)
def test_twelve_bits_in_a_larger_file_are_read_in_the_range_that_is_given(stored, grey):
    low, encode = IN_SIXTEEN[stored]
    data = encode(deep(grey, 12))
    assert np.array_equal(read(data, 1, (low, low + 4095))[..., 0], grey)


@given(arrays.arrays(np.int16, (3, 4)), st.integers(-40_000, 40_000), st.integers(1, 80_000))
@settings(deadline=None)
def test_grey_levels_divide_the_range_evenly(values, low, span):
    """Bit for bit: whole numbers only; what lies outside is the range's end."""
    data = tiff(values.astype("<i2").tobytes(), size_of(values), (16,), sample_format=2)
    found = read(data, 1, (low, low + span))[..., 0]
    for value, level in zip(values.ravel().tolist(), found.ravel().tolist(), strict=True):
        assert level == 256 * (min(max(value, low), low + span) - low) // (span + 1)


def test_rows_at_a_time_are_the_same(monkeypatch):
    values = np.random.default_rng(0).integers(0, 65536, (37, 11))
    whole = read(pgm(values, 65535), 1)
    monkeypatch.setattr(decoding, "_VALUES_AT_ONCE", 30)
    assert np.array_equal(read(pgm(values, 65535), 1), whole)
    assert np.array_equal(whole[..., 0], values >> 8)


RGBX = np.arange(2 * 3 * 4, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (tiff(bytes(9), (3, 2), (12,), order=">"), "BitsPerSample 12, .*big-endian"),
        (tiff(bytes(9), (3, 2), (12,), photometric=0), "PhotometricInterpretation 0"),
        (tiff(bytes(12), (3, 2), (16,), photometric=0, order=">"), "PhotometricInterpretation 0"),
        (tiff(bytes(12), (3, 2), (10,)), "BitsPerSample 10"),
        (tiff(bytes(12), (3, 2), (14,)), "BitsPerSample 14"),
        (tiff(bytes(12), (3, 2), (16,), sample_format=2), "SampleFormat 2.* grey_range"),
        (tiff(bytes(24), (3, 2), (32,)), "BitsPerSample 32.* no known range"),
        (tiff(bytes(24), (3, 2), (32,), sample_format=3), "SampleFormat 3.* no known range"),
        (tiff(bytes(6), (3, 2), sample_format=2), "SampleFormat 2: signed"),
        (tiff(RGBX, (3, 2), (8,) * 4, 2, extra=0), "ExtraSamples 0"),
        (tiff(RGBX, (3, 2), (8,) * 4, 2, extra=0, planar=2), "ExtraSamples 0"),
        (tiff(RGBX[:12], (3, 2), (8,) * 2, 1, extra=0), "ExtraSamples 0"),
        (tiff(RGBX, (3, 2), (8,) * 4, 1, extra=(0, 0, 0)), "ExtraSamples 0,0,0"),
        (b"Pf 1 1 -1.0\n" + bytes(4), "mode F have no known range"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused_by_its_tag(data, named):
    with pytest.raises((ValueError, UnidentifiedImageError), match=named):
        read(data)


def test_a_jpeg_of_twelve_bits_says_so(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12  # the precision
    (tmp_path / "a.jpg").write_bytes(data)
    for file in (str(tmp_path / "a.jpg"), tmp_path / "a.jpg", io.BytesIO(data)):
        with pytest.raises(UnidentifiedImageError, match="cannot handle 12-bit layers"):
            open_image(file)
    for neither in (b"", b"hello", b"II*\0"):
        with pytest.raises(UnidentifiedImageError):
            open_image(io.BytesIO(neither))


def test_what_a_phone_saves_under_another_ending_says_what_it_is(tmp_path):
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90))
    with pytest.raises(UnidentifiedImageError, match=r"HEIC, AVIF .*heic.*save it as PNG or JPEG"):
        open_image(tmp_path / "IMG_1.jpg")


# -- Transparency ------------------------------------------------------------------------------


def saved(image, kind="PNG", **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def test_transparency_is_laid_over_white():
    """All pairs of a colour and an alpha, rounded to the nearest."""
    colour, alpha = np.mgrid[:256, :256].astype(np.uint8)
    image = Image.fromarray(np.stack([colour, colour, colour, alpha], axis=2))
    c, a = colour.astype(int), alpha.astype(int)
    expected = (c * a + 255 * (255 - a) + 127) // 255
    assert np.array_equal(read(saved(image))[..., 1], expected)
    assert np.array_equal(read(saved(image), channels=1)[..., 0], expected)
    grey = Image.merge("LA", (Image.fromarray(colour), Image.fromarray(alpha)))
    assert np.array_equal(read(saved(grey))[..., 0], expected)
    assert np.array_equal(read(saved(image, "WEBP", lossless=True, exact=True))[..., 2], expected)


def _drawing(mode):
    """A black square on nothing, in every way to store that."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    if mode == "alpha alone":  # all pixels are black
        return saved(Image.merge("RGBA", (*[Image.new("L", (8, 8))] * 3, Image.fromarray(mask))))
    if mode == "colours of a palette":
        image = Image.fromarray(mask // 255, "P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        return saved(image, transparency=bytes([0, 255]))
    if mode == "GIF":
        image = Image.fromarray(mask // 255, "P")
        image.putpalette([9, 9, 9, 0, 0, 0])
        return saved(image, "GIF", transparency=0)
    if mode == "16-bit grey that is transparent":
        values = np.where(mask, 0, 257).astype(int)
        return png(map(big, values), (8, 8), 16, tRNS=(257).to_bytes(2, "big"))
    if mode == "8-bit grey that is transparent":
        return png(
            map(bytes, np.where(mask, 0, 7).astype(np.uint8)), (8, 8), tRNS=(7).to_bytes(2, "big")
        )
    premultiplied = np.stack([np.zeros_like(mask), mask], axis=2)
    return tiff(premultiplied.tobytes(), (8, 8), (8, 8), extra=1)


@pytest.mark.parametrize(
    "mode",
    [
        "alpha alone",
        "colours of a palette",
        "GIF",
        "16-bit grey that is transparent",
        "8-bit grey that is transparent",
        pytest.param(
            "premultiplied TIFF",
            marks=pytest.mark.skipif(
                int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 refuses it"
            ),
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_drawing_in_the_alpha_channel_is_seen(mode, channels):
    pixels = read(_drawing(mode), channels).copy()
    assert (pixels[2:6, 2:6] == 0).all()
    pixels[2:6, 2:6] = 255
    assert (pixels == 255).all()


def test_opaque_images_are_what_they_were():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    opaque = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(np.asarray(RGB(opaque)), pixels)
    for mode in ("CMYK", "YCbCr", "P", "1", "L", "LAB", "HSV"):
        image = Image.fromarray(pixels).convert(mode)
        expected = image.convert("RGB")
        assert np.array_equal(np.asarray(RGB(image)), np.asarray(expected))
        grey = Decoding(1).array(image)[..., 0]
        assert np.array_equal(grey, np.asarray(expected.convert("L")))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_transparent_grey_of_few_bits_is_seen(bits):
    """Of the values that are stored, not of those that Pillow makes of them."""
    values = np.arange(2**bits, dtype=np.uint8)[:, None].repeat(8, axis=1)
    rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1) for row in values]
    for transparent in range(2**bits):
        data = png(map(bytes, rows), (8, 2**bits), bits, tRNS=transparent.to_bytes(2, "big"))
        expected = values * (255 // (2**bits - 1))
        expected[transparent] = 255
        assert np.array_equal(read(data)[..., 0], expected)
        with open_image(io.BytesIO(data)) as image:  # as a loader does, and again
            decoding.load(image)
            assert np.array_equal(RGB.array(image)[..., 0], expected)
            assert np.array_equal(RGB.array(image)[..., 0], expected)


def test_a_transparent_colour_of_sixteen_bits_is_refused():
    data = png([bytes(6)], (1, 1), 16, 2, tRNS=bytes(6))
    with pytest.raises(ValueError, match=r"tRNS of 16-bit colours: .* alpha channel"):
        read(data)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_bitmap_of_32_bits_without_alpha_is_opaque(channels):
    """Many programs write four bytes a pixel, and leave the fourth 0."""
    bands = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    opaque = read(saved(Image.fromarray(bands[..., :3])), channels)
    data = bytearray(saved(Image.fromarray(bands), "BMP"))
    header = bytearray(14 + 108)  # BITMAPV4HEADER with the masks of BGRA
    header[:54] = data[:54]
    struct.pack_into("<I", header, 10, 122)
    struct.pack_into("<I", header, 14, 108)
    struct.pack_into("<I", header, 30, 3)
    struct.pack_into("<IIII", header, 54, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = data[struct.unpack_from("<I", data, 10)[0] :]
    some = np.frombuffer(pixels, np.uint8).copy()
    with open_image(io.BytesIO(bytes(header) + some.tobytes())) as image:
        assert image.mode == "RGBA"
    assert not np.array_equal(read(bytes(header) + some.tobytes(), channels), opaque)
    some[3::4] = 0
    assert np.array_equal(read(bytes(header) + some.tobytes(), channels), opaque)


# -- Whole images, and no more than these ------------------------------------------------------


@pytest.mark.parametrize("at", ["before the pixels", "after them"])
def test_a_long_text_in_a_picture_says_nothing_of_its_pixels(at):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    text = {"zTXt": b"Note\0\0" + zlib.compress(b"long" * 2**19), "tEXt": b"More\0" + b"x" * 2**21}
    plain = png(map(bytes, pixels), (4, 4))
    data = png(map(bytes, pixels), (4, 4), **text)
    if at == "after them":
        chunks = data[33 : data.index(b"IDAT") - 4]
        data = plain[:-12] + chunks + plain[-12:]
    assert np.array_equal(read(data, 1)[..., 0], pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_half_an_image_is_none_whatever_other_code_has_set(kind, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    half = saved(Image.fromarray(noise), kind)
    half = half[: len(half) // 2]
    with pytest.raises((OSError, ValueError)):
        read(half)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


# -- Orientation -------------------------------------------------------------------------------


def turned(kind, orientation):
    """A picture with a corner of its own, and what a viewer shows of it."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[274] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    data = saved(image, kind, exif=exif, **more)
    if kind == "JPEG":
        stored = np.asarray(Image.open(io.BytesIO(data)))
    turns = {1: 0, 8: 1, 3: 2, 6: 3}  # quarters, anticlockwise
    flip = orientation in (2, 4, 5, 7)
    quarters = {2: 0, 4: 2, 5: 1, 7: 3}[orientation] if flip else turns[orientation]
    return data, stored, np.rot90(stored[:, ::-1] if flip else stored, quarters)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_read_as_stored_or_upright(kind, orientation):
    data, stored, seen = turned(kind, orientation)
    with open_image(io.BytesIO(data)) as image:
        assert np.array_equal(RGB.array(image), seen if kind == "TIFF" else stored)
    upright = Decoding(3, orientation="upright")
    with open_image(io.BytesIO(data)) as image:
        found = upright(image)
        assert np.array_equal(np.asarray(found), seen)
        assert np.array_equal(upright.array(found), seen)
        assert decoding.turned_by_viewers(image) == (orientation > 1 and kind != "TIFF")
    for channels in (1, 4):
        with open_image(io.BytesIO(data)) as image:
            again = Decoding(channels, orientation="upright").array(image)
        assert np.array_equal(again[..., 0], seen[..., 0])


def test_other_orientations_are_refused():
    with pytest.raises(ValueError, match="orientation 'sideways'; expected stored or upright"):
        Decoding(3, orientation="sideways")


# -- Channels ----------------------------------------------------------------------------------


def test_four_channels_are_kept_as_they_are_stored():
    bands = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    for data in (
        saved(Image.fromarray(bands)),
        tiff(bands.tobytes(), (8, 9), (8,) * 4, 2, extra=2),
        tiff(bands.tobytes(), (8, 9), (8,) * 4, 2),
    ):
        assert np.array_equal(read(data, channels=4), bands)
    without = read(saved(Image.fromarray(bands[..., :3])), channels=4)
    assert np.array_equal(without[..., :3], bands[..., :3])
    assert (without[..., 3] == 255).all()
    cmyk = Image.fromarray(bands[..., :3]).convert("CMYK")
    assert np.array_equal(read(saved(cmyk, "TIFF"), 4)[..., :3], np.asarray(cmyk.convert("RGB")))


def test_the_fourth_band_does_not_weigh_the_others_when_they_are_resized():
    """As it would in Pillow's RGBA."""
    bands = np.zeros((2, 2, 4), np.uint8)
    bands[:, 0] = (200, 100, 0, 0)
    bands[:, 1] = (0, 100, 200, 255)
    image = Decoding(4)(Image.fromarray(bands))
    assert np.asarray(image.resize((1, 1), Image.Resampling.BOX)).tolist() == [
        [[100, 100, 100, 128]]
    ]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_and_images_are_the_same(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    decoding = Decoding(channels)
    image = from_array(pixels)
    assert image.size == (6, 5)
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert np.array_equal(decoding.array(image), pixels)
    assert np.array_equal(decoding.array(decoding(image)), pixels)


@pytest.mark.parametrize(
    "given", [(4095, 0), (0, 0), (0.5, 2), (0,), "0,4095", (0, float("inf")), (0, 10**400), 7]
)
def test_ranges_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match="expected the smallest and the largest"):
        Decoding(3, given)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="2 channels; expected 1, 3 or 4"):
        Decoding(2)
