"""Images kept decoded in memory are the images that files give."""

import numpy as np
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st

from isomax_evaluation import data
from isomax_evaluation.data.decoded import AugmentedBatches, Decoded, crop_and_flip
from isomax_evaluation.data.images import Transformed

CONFIG = {
    "input_size": (3, 24, 24),
    "interpolation": "bicubic",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.25),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def test_evaluation_batches_are_those_of_timms_transform(photos):
    images = data.open_images(str(photos))
    decoded = Decoded(images, CONFIG, torch.device("cpu"), batch_size=50)
    transformed = Transformed(images, timm.data.create_transform(**CONFIG))
    expected = torch.stack([transformed[position][0] for position in range(len(images))])
    batches = list(decoded)
    assert [len(batch) for batch, _ in batches] == [50, 50, 20]
    torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected)
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels.tolist()


def test_crops_do_not_depend_on_what_else_draws(photos):
    images = Decoded(data.open_images(str(photos)), CONFIG, torch.device("cpu"), batch_size=50)

    def batches(noisy):
        torch.manual_seed(3)
        for batch, _ in AugmentedBatches(images, [[0, 1, 2], [3, 4, 5]], padding=3, hflip=0.5):
            yield batch
            torch.rand(5 if noisy else 0)  # as mosaics or dropout do

    for one, other in zip(batches(False), batches(True), strict=True):
        assert torch.equal(one, other)


@given(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_augmented_image_is_a_crop_of_its_padded_original(seed, padding, hflip):
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(1, 256, (3, 3, 5, 6), dtype=np.uint8))
    torch.manual_seed(seed)
    result = crop_and_flip(pixels, padding, hflip)
    assert result.shape == pixels.shape
    for original, image in zip(pixels, result, strict=True):
        padded = torch.nn.functional.pad(original, (padding,) * 4)
        crops = [
            padded[:, top : top + 5, left : left + 6]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        allowed = [*crops] if hflip < 1 else []
        allowed += [crop.flip(2) for crop in crops] if hflip > 0 else []
        assert any(torch.equal(image, crop) for crop in allowed)


def test_the_draw_depends_on_the_seed_alone(photos):
    images = data.open_images(str(photos))
    decoded = Decoded(images, CONFIG, torch.device("cpu"), batch_size=50)
    batches = [[0, 5, 7], [1, 2, 3]]

    def epoch(seed):
        torch.manual_seed(seed)
        return torch.cat([x for x, _ in AugmentedBatches(decoded, batches, 4, 0.5)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
