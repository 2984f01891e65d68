"""Warm-up rises to the learning rate; a moving average begins with what is learnt first."""

import json
from dataclasses import replace

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from isomax_evaluation import train
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.training.jobs import make_optimizer, make_scheduler
from isomax_evaluation.training.recipes import RECIPES, Recipe

MODEL = timm.create_model("test_resnet", num_classes=3)


@given(st.floats(1e-9, 10), st.integers(1, 3), st.sampled_from(["cosine", "step", "tanh", "poly"]))
def test_a_warm_up_never_falls(lr, warmup, sched):
    recipe = Recipe(lr=lr, sched=sched, warmup_epochs=warmup, epochs=9)
    optimizer = make_optimizer(MODEL, recipe)
    scheduler = make_scheduler(optimizer, recipe, updates=5)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 5 * warmup):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] <= lr
    if lr > 1e-5:
        assert rates[0] == 1e-5  # timm's own


def test_a_long_moving_average_of_a_short_training_is_warned_of_and_good(tmp_path, capfd):
    recipe = replace(RECIPES["digits"], epochs=6, ema_decay=0.9998)
    train(
        "digits",
        tmp_path,
        model="test_resnet",
        recipe=recipe,
        images_per_class=60,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=32),
    )
    said = capfd.readouterr().err
    assert "warning: ema_decay 0.9998 alone would keep 99% of the initial weights" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_others_are_not_warned_of(ema_decay, tmp_path, capfd):
    train(
        "digits",
        tmp_path,
        model="test_resnet",
        images_per_class=40,
        alpha=0.1,
        recipe=replace(RECIPES["digits"], epochs=1, ema_decay=ema_decay),
        preprocessing=Preprocessing(image_size=32),
    )
    assert "ema_decay" not in capfd.readouterr().err
