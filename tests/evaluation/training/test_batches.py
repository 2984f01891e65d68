"""The order of images, what is drawn for each, and the processes that decode them."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from isomax_evaluation import data, train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.batches import (
    Augmented,
    EpochBatches,
    balanced,
    eval_loader,
    train_loader,
    train_transform,
)
from isomax_evaluation.training.jobs import Job
from isomax_evaluation.training.recipes import RECIPES, Recipe
from isomax_evaluation.training.source import Source

CONFIG = timm.data.resolve_data_config({"input_size": (3, 32, 32)})


@given(
    st.integers(1, 200), st.integers(1, 8), st.integers(1, 3), st.integers(1, 4), st.booleans(),
    st.integers(0, 3),
)  # fmt: skip
@settings(deadline=None)
def test_processes_together_see_each_batch_once(size, part, processes, accumulate, weighted, epoch):
    batch_size = part * processes * accumulate
    weights = torch.ones(size, dtype=torch.float64) if weighted else None
    makers = [
        lambda rank=rank: EpochBatches(size, batch_size, 0, rank, processes, accumulate, weights)
        for rank in range(processes)
    ]
    if size < processes * accumulate and size < batch_size:
        with pytest.raises(InputError, match="accumulate fewer steps"):
            makers[0]()
        return
    every = []
    for make in makers:
        batches = make()
        batches.epoch = epoch
        every.append(list(batches))
    assert len({len(batches) for batches in every}) == 1
    drawn = [position for batches in every for batch in batches for position in batch]
    assert all(0 <= position < size for position in drawn)
    updates = len(every[0]) // accumulate
    assert len(drawn) == updates * min(batch_size, size - size % (processes * accumulate))
    if not weighted:
        assert len(set(drawn)) == len(drawn)


def test_classes_are_drawn_alike_often():
    labels = np.array([0] * 400 + [1] * 40 + [2] * 10)
    batches = EpochBatches(450, 30, 0, 0, 1, 1, balanced(labels))
    drawn = []
    for batches.epoch in range(20):
        drawn += [position for batch in batches for position in batch]
    counts = np.bincount(labels[drawn]) / len(drawn)
    np.testing.assert_allclose(counts, 1 / 3, atol=0.02)  # of 9,000 draws
    assert set(drawn) >= set(range(400, 450))


def loader_of(images, workers, augment="timm"):
    recipe = Recipe(augment=augment, auto_augment="rand-m5", reprob=0.5)
    batches = EpochBatches(len(images), 40, 0, rank=0, processes=1, accumulate=1)
    job = Job(Source("test_resnet"), "softmax", recipe, workers=workers)
    return train_loader(job, images, CONFIG, batches, Accelerator(cpu=True)), batches


def test_processes_that_outlive_an_epoch_draw_as_those_that_do_not(photos):
    images = data.open_images(str(photos))
    lasting, batches = loader_of(images, 2)
    found, processes = [], []
    for epoch in range(3):
        batches.epoch = epoch
        found.append(torch.cat([pixels for pixels, _ in lasting]))
        processes.append({worker.pid for worker in lasting._iterator._workers})
    assert len(processes[0]) == 2
    assert processes[0] == processes[1] == processes[2]
    for epoch in (0, 1, 2):
        alone, batches = loader_of(images, 0)
        batches.epoch = epoch
        assert torch.equal(torch.cat([pixels for pixels, _ in alone]), found[epoch])
    assert not torch.equal(found[0], found[1])


def test_under_spawn_processes_start_once(photos, monkeypatch):
    """As on macOS and Windows, where each starts as a new interpreter does."""
    images = data.open_images(str(photos)).take(range(40))
    loader, batches = loader_of(images, 1, augment="none")
    loader.multiprocessing_context = "spawn"
    pids, seconds = set(), []
    for epoch in range(4):
        batches.epoch = epoch
        started = time.perf_counter()
        assert len(torch.cat([pixels for pixels, _ in loader])) == 40
        seconds.append(time.perf_counter() - started)
        pids |= {worker.pid for worker in loader._iterator._workers}
    assert len(pids) == 1
    assert pids != {os.getpid()}


def test_evaluation_may_be_iterated_again(photos):
    images = data.open_images(str(photos))
    job = Job(Source("test_resnet"), "softmax", Recipe(), workers=1)
    loader = eval_loader(images, CONFIG, job, Accelerator(cpu=True))
    once, again = ([labels for _, labels in loader] for _ in range(2))
    assert torch.equal(torch.cat(once), torch.cat(again))
    assert torch.cat(once).tolist() == images.labels.tolist()


def test_interrupted_with_processes_it_ends_with_the_same_weights(photos, tmp_path, monkeypatch):
    """Dropout and mosaics draw from the process's random numbers, as a loader that starts does."""
    from isomax_evaluation.training import loop

    def run(output):
        recipe = replace(RECIPES["digits"], epochs=3, augment="timm", batch_size=16)
        return train(
            str(photos),
            output,
            model="test_resnet",
            loss="dismax+fpr",
            recipe=recipe,
            alpha=0.2,
            preprocessing=Preprocessing(image_size=32),
            reading=Reading(workers=1),
        )

    whole = run(tmp_path / "whole")
    original, saved = loop._save_checkpoint, []

    def stopping(*arguments):
        original(*arguments)
        saved.append(1)
        if len(saved) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_save_checkpoint", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    again = run(tmp_path / "cut")
    files = [folder / "model.safetensors" for folder in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]


@given(
    st.sampled_from(["timm", "pad-crop", "none"]),
    st.sampled_from(["center", "squash", "border"]),
    st.sampled_from([(1, "L"), (3, "RGB"), (4, "RGBX")]),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.tuples(st.integers(4, 60), st.integers(4, 60)),
    st.sampled_from([None, "rand-m5", "augmix-m3", "3a"]),
)
@settings(deadline=None, max_examples=60)
def test_every_transform_gives_the_input_size(augment, crop_mode, channels, size, picture, policy):
    from PIL import Image

    count, mode = channels
    policy = policy if count < 4 else None  # refused, Pillow has no such operations of four bands
    config = {
        **CONFIG, "input_size": (count, *size), "crop_mode": crop_mode, "crop_pct": 0.9,
        "mean": (0.5,) * count, "std": (0.25,) * count,
    }  # fmt: skip
    recipe = Recipe(augment=augment, auto_augment=policy, color_jitter=0.4, reprob=1.0)
    pixels = train_transform(recipe, config)(Image.effect_noise(picture, 50).convert(mode))
    assert pixels.shape == (count, *size)


def test_a_position_alone_is_of_the_data_sets_epoch(photos):
    images = data.open_images(str(photos))
    transform = train_transform(Recipe(), CONFIG)
    later = Augmented(images, transform, seed=3, epoch=5)
    assert torch.equal(later[7][0], Augmented(images, transform, seed=3)[5, 7][0])
