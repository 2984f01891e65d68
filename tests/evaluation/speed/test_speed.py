"""Measuring measures: no test here looks at how long anything takes."""

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
    costs = cost_of_detectors(model, parts, {"ODIN": odin}, x, least=2, most=2)
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
    ("ratios", "settled", "runs"),
    [([2.0], True, 7), ([0.33, 1.39, 2.9], False, 31), ([0.5, 3.0] * 5 + [2.0] * 21, True, None)],
)
def test_a_ratio_is_measured_until_it_settles_or_is_marked(ratios, settled, runs, monkeypatch):
    done = []

    def seconds(function):
        done.append(function)
        return 1.0 if function == "baseline" else ratios[(len(done) // 2 - 1) % len(ratios)]

    monkeypatch.setattr(timing, "_seconds", seconds)
    found = timing.ratio_to("baseline", "detector", warmup=0)
    assert found.stable == settled
    assert found.ratio in ratios
    if runs:
        assert len(done) == 2 * runs
    else:
        assert 2 * 7 < len(done) <= 2 * 31
