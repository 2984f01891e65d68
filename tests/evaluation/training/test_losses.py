"""Rare classes that count as much as common ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from isomax_evaluation import train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.losses import LOSSES, ClassWeighted
from isomax_evaluation.training.recipes import RECIPES


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.sampled_from(["softmax", "isomax"]))
def test_the_weights_make_every_class_count_alike(counts, loss):
    labels = np.repeat(np.arange(len(counts)), counts)
    plain = LOSSES[loss].criterion(reduction="none")
    criterion = ClassWeighted(plain, labels, len(counts))
    target = torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(0)
    logits = -torch.rand(len(labels), len(counts), generator=generator)
    each = plain(logits, target)
    by_class = torch.stack([each[target == label].mean() for label in range(len(counts))])
    torch.testing.assert_close(criterion(logits, target), by_class.mean())
    one_hot = F.one_hot(target, len(counts)).float()
    torch.testing.assert_close(criterion(logits, one_hot), by_class.mean())


@pytest.fixture(scope="module")
def long_tail(tmp_path_factory):
    """120, 120 and 10 images for training, whose colours overlap; 20 each to test on."""
    root = tmp_path_factory.mktemp("tail")
    generator = np.random.default_rng(0)
    for split, counts in (("train", (120, 120, 10)), ("test", (20, 20, 20))):
        for label, (name, count) in enumerate(zip(("ash", "birch", "rare"), counts, strict=True)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                level = generator.normal((90, 150, 115)[label], 14)
                pixels = np.clip(generator.normal(level, 8, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}{index}.png")
    return root


@pytest.mark.parametrize("loss", ["softmax", "isomax"])
def test_a_rare_class_is_recognised_more_often(loss, long_tail, tmp_path):
    recall = {}
    for change in ({}, {"class_weights": True}, {"balanced_sampling": True}):
        name = "".join(change) or "plain"
        recipe = replace(
            RECIPES["digits"], epochs=4, batch_size=25, augment="none", lr=0.05, **change
        )
        train(
            str(long_tail),
            tmp_path / name,
            model="test_resnet",
            loss=loss,
            recipe=recipe,
            alpha=0.2,
            preprocessing=Preprocessing(image_size=16),
            reading=Reading(workers=0),
        )
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        recall[name] = summary["classes"]["rare"]["recall"]
    assert recall["class_weights"] > recall["plain"]
    assert recall["balanced_sampling"] > recall["plain"]


def test_accumulated_steps_weigh_as_whole_batches(tmp_path, long_tail):
    curves = []
    for accumulate in (1, 5):
        recipe = replace(
            RECIPES["digits"], epochs=2, batch_size=25, augment="none", lr=0.01,
            class_weights=True, accumulate=accumulate,
        )  # fmt: skip
        output = tmp_path / str(accumulate)
        train(
            str(long_tail),
            output,
            model="test_vit",
            recipe=recipe,
            alpha=0.2,
            preprocessing=Preprocessing(image_size=32),
            reading=Reading(workers=0),
        )
        rows = (output / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(row)["train_loss"] for row in rows])
    torch.testing.assert_close(*curves, rtol=0, atol=1e-4)
