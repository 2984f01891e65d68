"""The same picture in files of other depths is the same to training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation import data
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Silent

QUIET = Silent()


def write(folder, pictures):
    """Two classes of grey pictures."""
    for number, pixels in enumerate(pictures):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return data.open_images(str(folder))


@given(st.integers(9, 16), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_bits_in_16_with_their_range_are_the_picture_in_8(tmp_path_factory, bits, seed):
    stored = np.random.default_rng(seed).integers(0, 2**bits, (6, 7)).astype(np.uint16)
    folder = tmp_path_factory.mktemp("depths")
    deep = write(folder / "deep", [stored, stored])
    shallow = write(folder / "shallow", [(stored >> (bits - 8)).astype(np.uint8)] * 2)
    for channels in (1, 3):
        deep = deep.decoded(Decoding(channels, (0, 2**bits - 1)))
        expected = np.asarray(shallow.decoded(Decoding(channels)).image(0))
        assert np.array_equal(np.asarray(deep.image(0)), expected)


def test_the_training_images_own_range_is_found(tmp_path):
    first = np.full((5, 5), 700, np.uint16)
    first[0, 0] = 3001
    second = np.full((5, 5), 1500, np.uint16)
    second[2, 2] = 41
    images = write(tmp_path, [first, second, np.full((5, 5), 9, np.uint8)])
    (tmp_path / "a" / "0.png").with_name("broken.png").write_bytes(b"\x89PNG")
    images = data.open_images(str(tmp_path))
    assert data.grey_range_of(images, 0, QUIET) == (41, 3001)


def test_a_range_of_images_that_have_none_is_refused(tmp_path, photos):
    for images in (data.open_images(str(photos)), data.open_splits("digits").train):
        with pytest.raises(InputError, match="no grey range to find; give LOW,HIGH, or leave"):
            data.grey_range_of(images, 0, QUIET)


def test_what_looks_wrong_is_said(tmp_path):
    dim = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    dim[0, :2] = 0, 4095
    images = write(tmp_path / "dim", [dim] * 4)
    (said,) = data.warnings_of(images)
    assert "16 of 256 levels are left" in said
    assert "0,4095 if they have 12 bits" in said
    assert not data.warnings_of(images.decoded(Decoding(1, (0, 4095))))
    alpha = np.zeros((8, 8, 4), np.uint8)
    alpha[2:5, 2:5, 3] = 255  # an icon whose drawing is in its alpha alone: black on white
    alpha[..., :3] = 255
    icons = write(tmp_path / "icons", [alpha] * 4)
    assert "4 of 4 images are of a single colour" in data.warnings_of(icons)[0]


def test_four_channels_keep_the_fourth(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4)).astype(np.uint8)
    images = write(tmp_path, [pixels, pixels]).decoded(Decoding(4))
    assert np.array_equal(np.asarray(images.image(0)), pixels)


def test_masks_among_the_images_are_said(tmp_path):
    images = write(tmp_path, np.random.default_rng(0).integers(0, 256, (4, 9, 9), dtype=np.uint8))
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "2_mask.png")
    (said,) = data.warnings_of(data.open_images(str(tmp_path)))
    assert said.startswith(f"1 of 4 images are masks of others by their names ({tmp_path}/a/2_mask")
    assert len(images) == 4
