import numpy as np
import pytest
from PIL import Image

from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation.data.checking import check_pixels, masks_beside

from ...adapters.runtime.encoded import png, tiff


@pytest.fixture
def saved(tmp_path):
    """Save images, as arrays or as bytes, in order; their paths."""

    def save(*images):
        paths = []
        for image in images:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.tif"
            if isinstance(image, bytes):
                path.write_bytes(image)
            else:
                Image.fromarray(image).save(path)
            paths.append(str(path))
        return paths

    return save


def noise(high, shape=(6, 5), dtype=np.uint16, low=0):
    return np.random.default_rng(0).integers(low, high + 1, shape).astype(dtype)


def test_sixteen_bits_of_which_few_are_used_are_noticed_and_the_range_is_named(saved):
    ramp = np.linspace(100, 4000, 30).reshape(5, 6).astype(np.uint16)
    check = check_pixels(saved(ramp, ramp // 2))
    assert check.extremes == (50, 4000)
    assert check.grey_levels == 15
    (warning,) = check.warnings()
    assert "between 50 and 4000" in warning
    assert "give the grey range 50,4000, or 0,4095 if they have 12 bits" in warning
    assert check_pixels(saved(ramp), Decoding(3, check.extremes)).warnings() == []
    assert check_pixels(saved(ramp * 16)).warnings() == []
    # fourteen bits, as cameras and detectors have them
    assert check_pixels(saved(noise(2**14 - 1))).grey_levels <= 64
    # twelve bits that say so, and eight
    said = tiff(bytes(range(0, 252, 28)), (3, 2), (12,))
    assert check_pixels(saved(said)).grey_levels > 200
    assert check_pixels(saved(noise(15, dtype=np.uint8))).grey_levels is None


def test_the_range_of_all_images_is_that_of_signed_ones_too(saved):
    values = np.array([[-900, 0, 3000]], "<i2")
    paths = saved(tiff(values.tobytes(), (3, 1), (16,), sample_format=2))
    check = check_pixels(paths, at_most=None)
    assert check.extremes == (-900, 3000)
    assert check.grey_levels is None


def test_colours_of_sixteen_bits_of_which_few_are_used_are_noticed(saved, tmp_path):
    rows = [row.astype(">u2").tobytes() for row in noise(4095, (6, 5, 3))]
    (tmp_path / "a.png").write_bytes(png(rows, (5, 6), 16, 2))
    (warning,) = check_pixels([str(tmp_path / "a.png")]).warnings()
    assert "16 of 256 levels" in warning
    dark = noise(15, (6, 5, 3), np.uint8)
    assert check_pixels(saved(dark)).warnings() == []


def test_images_of_one_colour_are_named(saved):
    drawing = np.zeros((6, 6, 4), np.uint8)
    drawing[..., :3] = 255  # white on nothing
    drawing[2:4, 2:4, 3] = 255
    paths = saved(drawing, noise(255, (6, 6, 3), np.uint8), np.full((3, 3), 7, np.uint16))
    check = check_pixels(paths)
    assert check.constant == (paths[0], paths[2])
    assert f"2 of 3 images are of a single colour ({paths[0]}, {paths[2]})" in check.warnings()[-1]
    assert check_pixels(paths[:1], Decoding(4)).constant == ()


def test_an_alpha_channel_that_looks_like_data_is_named(saved):
    bands = noise(255, (6, 6, 4), np.uint8)
    mask = bands.copy()
    mask[..., 3] = np.where(bands[..., 3] > 128, 255, 0)
    paths = saved(bands, mask)
    check = check_pixels(paths)
    assert check.data_bands == (paths[0],)
    assert "looks like data, not transparency" in check.warnings()[0]


def test_a_sample_is_spread_over_all(saved, tmp_path):
    paths = saved(*[np.full((2, 2), at, np.uint8) for at in range(9)])
    check = check_pixels(paths, at_most=3)
    assert check.constant == (paths[0], paths[4], paths[8])
    assert check.images == 3
    assert check_pixels([]).warnings() == []
    with pytest.raises(FileNotFoundError):
        check_pixels([str(tmp_path / "gone.png")])


def test_photographs_that_viewers_turn_are_counted(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for name in ("a.jpg", "b.png", "c.tif"):  # Pillow turns the last one itself
        Image.fromarray(noise(255, (6, 8, 3), np.uint8)).save(tmp_path / name, exif=exif)
    Image.fromarray(noise(255, (6, 8, 3), np.uint8)).save(tmp_path / "d.jpg")
    paths = sorted(map(str, tmp_path.iterdir()))
    check = check_pixels(paths)
    assert check.turned == tuple(paths[:2])
    assert "2 of 4 images are turned by viewers, as EXIF says" in check.warnings()[0]
    assert check_pixels(paths, Decoding(3, orientation="upright")).warnings() == []


def test_masks_beside_their_images_are_found_by_name(tmp_path):
    for name in ("a/x.png", "a/x_mask.png", "a/y.jpg", "a/y-SEG.png", "a/y_gt.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("b/x_mask.png", "a/mask.png", "a/z_mask.png", "a/gas_mask_1.png", "a/x1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = sorted(str(path) for path in tmp_path.rglob("*.*"))
    named = ("a/x_mask.png", "a/y-SEG.png", "a/y_gt.png")
    assert sorted(masks_beside(paths)) == [str(tmp_path / name) for name in named]
