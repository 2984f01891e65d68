"""Measuring measures: no test here looks at how long anything takes."""

import itertools

import numpy as np
import pytest
import timm
import torch

from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_evaluation.speed import timing
from isomax_evaluation.speed.costs import cost_of_detectors, count_passes
from isomax_evaluation.speed.timing import alternate


def test_functions_run_in_turns():
    calls = []
    medians = alternate({name: lambda name=name: calls.append(name) for name in "ab"}, 3, warmup=1)
    assert calls == list("abababab")
    assert set(medians) == {"a", "b"}


def test_passes_are_counted():
    model = timm.create_model("test_resnet", num_classes=3).eval()
    parts, x = Parts(model), torch.rand(2, 3, 32, 32)
    assert count_passes(parts, lambda: model(x)) == (1, 0)
    odin = detectors_for(model, ["ODIN"])["ODIN"]
    assert count_passes(parts, lambda: odin.predict(x)) == (2, 1)
    costs = cost_of_detectors(model, parts, {"ODIN": odin}, x, budget=0)
    assert costs.loc[0, "backward"] == 1


def test_passes_of_a_model_of_tokens_are_counted():
    parts = Parts(timm.create_model("test_vit", num_classes=3).eval())
    size = parts.model.pretrained_cfg["input_size"]
    x = torch.rand(2, *size)
    assert count_passes(parts, lambda: parts.stages(x)) == (1, 0)
    assert count_passes(parts, lambda: parts.model(x)) == (1, 0)


def test_a_file_of_ones_own_is_measured(isomax, compared, photos, tmp_path):
    run = isomax("speed", compared.output / "model.onnx", "--images", photos / "ash", "--quick")
    assert run.returncode == 0, run.stderr
    assert "uniform batches of the model's size" in run.stdout
    run = isomax("speed", photos / "ash" / "000.jpg")
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)
    run = isomax("speed", compared.output / "model.onnx", "--images", tmp_path)
    assert (run.returncode, run.stderr) == (2, f"isomax: there are no images in {tmp_path}\n")


@pytest.mark.parametrize(
    ("ratios", "budget", "runs"),
    [
        ([2.0], 60, 1 + 5),  # the first one warms up
        ([2.0, 2.05, 1.95], 60, 1 + 5),
        ([0.33, 1.39, 2.9], 60, 1 + 31),
        ([2.0], 0, 1),
    ],
)
def test_a_ratio_is_measured_until_its_interval_is_narrow_or_its_time_is_spent(
    ratios, budget, runs
):
    given = itertools.cycle(ratios)
    done = []
    found = timing.repeated(lambda: (1.0, done.append(0) or next(given)), budget)
    assert len(done) == runs
    assert found.ratio in ratios
    assert np.isnan(found.spread) == (runs == 1)


def test_the_spread_is_the_interval_of_the_median(monkeypatch):
    monkeypatch.setattr(timing, "NARROW", 0)
    ratios = iter([99.0, *np.random.default_rng(0).normal(10, 2, 31)])
    found = timing.repeated(lambda: (1.0, next(ratios)), 60)
    # 1.253 standard errors of the mean, on either side 1.96 of these
    assert found.spread == pytest.approx(1.96 * 1.253 * 2 / 31**0.5, rel=0.35)


def test_what_takes_no_pass_of_its_own_is_timed_behind_one_pass():
    model = timm.create_model("test_resnet", num_classes=3).eval()
    parts, x = Parts(model), torch.rand(4, 3, 32, 32)
    names = ["ODIN", "ReAct-maps", "ASH", "MaxLogit"]
    detectors = detectors_for(model, names)
    detectors["ReAct-maps"].threshold = 1.0
    detectors["ASH"].head = None  # fails: its cells say why
    asked = []
    costs = cost_of_detectors(model, parts, detectors, x, 0, asked.append).set_index("detector")
    assert asked == ["ReAct-maps", "ASH", "MaxLogit", "ODIN"]
    assert list(costs.index) == ["ReAct-maps", "MaxLogit", "ODIN"]
    assert costs["forward"].tolist() == [1, 1, 2]
    assert (costs["relative_time"][:2] > 1).all()
    assert costs["spread"].isna().all()
