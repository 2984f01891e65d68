"""Every way in which weights are saved, and everything that can be wrong with a file of them."""

import argparse
import copy
from itertools import cycle, product
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from isomax_adapters.timm import CheckpointError, load_weights, read_checkpoint


def make(name="test_resnet", classes=5, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **kwargs).eval()


def stem_of(model):
    return model.conv1[0].weight


@pytest.fixture(scope="module")
def saved():
    return make()


def prefixed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


OTHER = {"conv1.0.weight": torch.zeros(1)}  # taken by mistake, it would not fit
WAYS = {
    "bare": lambda tensors: tensors,
    "nested": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {}}},
    "ema": lambda tensors: {"state_dict": OTHER, "state_dict_ema": tensors},
    "model_ema": lambda tensors: {"model": OTHER, "model_ema": tensors},
    "parallel": lambda tensors: {"state_dict": prefixed(tensors, "module.")},
    "compiled": lambda tensors: prefixed(tensors, "_orig_mod."),
    "both": lambda tensors: prefixed(tensors, "_orig_mod.module."),
    "half": lambda tensors: {
        name: t.half() if t.is_floating_point() else t for name, t in tensors.items()
    },
}


SUFFIXES = ("pth", "pt", "pth.tar", "bin")
FLAT = ("bare", "compiled", "both", "half")


@pytest.mark.parametrize(
    ("way", "suffix"),
    [*zip(WAYS, cycle(SUFFIXES), strict=False), *product(FLAT, ["safetensors"])],
)
def test_what_training_scripts_save_is_read(way, suffix, saved, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(WAYS[way](saved.state_dict()), path)
    model = make(seed=1)
    assert load_weights(model, read_checkpoint(path)) == []
    images = torch.randn(2, 3, 64, 64)
    tolerance = 1e-2 if way == "half" else 0
    torch.testing.assert_close(model(images), saved(images), rtol=tolerance, atol=tolerance)


def test_the_moving_average_is_taken_unless_it_is_not_wanted(saved, tmp_path):
    average = make(seed=1)
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": saved.state_dict(), "state_dict_ema": average.state_dict()}, path)
    for use_ema, expected in ((True, average), (False, saved)):
        tensors = read_checkpoint(path, use_ema=use_ema).tensors
        assert torch.equal(tensors["conv1.0.weight"], stem_of(expected))


def test_files_of_the_older_format_are_read(saved, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(saved.state_dict(), path, _use_new_zipfile_serialization=False)
    model = make(seed=1)
    load_weights(model, read_checkpoint(path))
    assert torch.equal(stem_of(model), stem_of(saved))


def test_what_the_training_was_run_with_is_read(saved, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    args = argparse.Namespace(model="test_resnet", num_classes=5, img_size=96)
    torch.save({"arch": "test_resnet", "state_dict": saved.state_dict(), "args": args}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.args == {"model": "test_resnet", "num_classes": 5, "img_size": 96}
    assert checkpoint.architecture == "test_resnet"
    # without arguments, timm's saver writes the name of the class
    torch.save({"arch": "resnet", "state_dict": saved.state_dict()}, path)
    assert read_checkpoint(path).architecture is None


# -- Classifiers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "isomax_test_resnet", "dismax_test_resnet"])
@pytest.mark.parametrize("other", ["test_resnet", "isomax_test_resnet", "isomaxplus_test_resnet"])
@pytest.mark.parametrize("classes", [5, 3])
def test_a_classifier_that_does_not_fit_is_left_out_where_training_follows(
    name, other, classes, tmp_path
):
    path = tmp_path / "weights.pth"
    trained = make(other, classes)
    torch.save(trained.state_dict(), path)
    model, checkpoint = make(name, seed=1), read_checkpoint(path)
    classifier = copy.deepcopy(model.get_classifier().state_dict())
    theirs = [name for name in trained.state_dict() if name.startswith("fc.")]
    # the file does not say what it is of, and the tensors of IsoMax+ and DisMax are alike
    plus = name.replace("dismax", "isomaxplus")
    fit = (plus, 5) == (other, classes)
    if not fit:
        reason = "is for 3 classes" if plus == other else "is softmax|is isomax"
        with pytest.raises(CheckpointError, match=f"the classifier in .*weights.pth {reason}"):
            load_weights(model, checkpoint)
        assert not torch.equal(stem_of(model), stem_of(trained))
    left_out = load_weights(model, checkpoint, training_follows=True)
    assert torch.equal(stem_of(model), stem_of(trained))
    if fit:
        assert left_out == []
        assert torch.equal(model.fc.weight, trained.fc.weight)
    else:
        assert left_out == theirs
        for name, tensor in model.get_classifier().state_dict().items():
            assert torch.equal(tensor, classifier[name])


def test_a_head_that_only_the_architecture_tells_apart_is_not_taken_for_another(tmp_path):
    path = tmp_path / "weights.pth"
    tensors = make("isomaxplus_test_resnet").state_dict()
    torch.save({"arch": "isomaxplus_test_resnet", "state_dict": tensors}, path)
    model, checkpoint = make("dismax_test_resnet", seed=1), read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"is isomax\+ .* is dismax; name the model"):
        load_weights(model, checkpoint)
    left_out = load_weights(model, checkpoint, training_follows=True)
    assert left_out == ["fc.prototypes", "fc.distance_scale"]
    assert load_weights(make("isomaxplus_test_resnet", seed=1), checkpoint) == []


def test_several_classifiers_are_left_out_together(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make("isomax_levit_128s", 3).state_dict(), path)
    model = make("isomax_levit_128s", seed=1)
    left_out = load_weights(model, read_checkpoint(path), training_follows=True)
    assert left_out == ["head.linear.prototypes", "head_dist.linear.prototypes"]


@pytest.mark.parametrize("name", ["test_vit", "isomaxplus_test_vit"])
def test_position_embeddings_of_another_input_size_are_resized(name, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make(name).state_dict(), path)
    model = make(name, seed=1, img_size=64)
    load_weights(model, read_checkpoint(path))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


# -- Bad files ---------------------------------------------------------------------------------


def _pickled_model(path):
    torch.save(make(), path)


def _truncated(path):
    torch.save(make().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


BAD = {
    "missing.pth": (lambda path: None, "there is no checkpoint"),
    "folder.pth": (lambda path: path.mkdir(), "is a folder"),
    "weights.npz": (lambda path: path.touch(), "expected one of .safetensors, .pth"),
    "empty.pth": (lambda path: path.touch(), "damaged or no checkpoint"),
    "empty.safetensors": (lambda path: path.touch(), "damaged or no checkpoint"),
    "text.pth": (lambda path: path.write_text("hello"), "damaged or no checkpoint"),
    "page.safetensors": (lambda path: path.write_text("<html>"), "damaged or no checkpoint"),
    "cut.pth": (_truncated, "damaged or no checkpoint"),
    "whole_model.pth": (_pickled_model, "needs code that is not run: timm.*; where it was made"),
    "older_whole_model.pth": (
        lambda path: torch.save(make(), path, _use_new_zipfile_serialization=False),
        "damaged or no checkpoint: .*Unsupported global: GLOBAL timm.models.resnet",
    ),
    "path.pth": (lambda path: torch.save({"at": Path("x")}, path), "needs code .*pathlib"),
    "noise.pth": (lambda path: path.write_bytes(bytes(range(256))), "damaged or no checkpoint"),
    "tensor.pth": (lambda path: torch.save(torch.ones(2), path), "holds no tensors by name"),
    "numbers.pth": (lambda path: torch.save({1: torch.ones(2)}, path), "no tensors by name"),
    "nothing.pth": (lambda path: torch.save({}, path), "has nothing; expected tensors"),
    "deeper.pth": (
        lambda path: torch.save({"net": make().state_dict(), "epoch": 1}, path),
        r"has net \(.*Dict\), epoch \(int\); expected tensors by name, .* under state_dict_ema",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_checkpoint_is_named_in_one_line(name, tmp_path):
    write, message = BAD[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class _Calls:
    def __reduce__(self):
        return (print, ("code was run",))


def test_no_code_is_run(tmp_path, capsys):
    torch.save({"state_dict": _Calls()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"builtins\.print"):
        read_checkpoint(tmp_path / "weights.pth")
    assert "code was run" not in capsys.readouterr().out


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(data, tmp_path):
    path = tmp_path / "weights.pth"
    tensors = make(seed=1).state_dict()
    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    wrong = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    kinds = [data.draw(st.sampled_from(["missing", "extra", "shape"])) for _ in wrong]
    for name, kind in zip(wrong, kinds, strict=True):
        if kind == "missing":
            del tensors[name]
        elif kind == "extra":
            tensors[f"more.{name}"] = tensors[name]
        else:
            tensors[name] = torch.zeros(17, 3)
    torch.save(tensors, path)
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, read_checkpoint(path))
    message = str(caught.value)
    assert "\n" not in message
    if "the classifier in" not in message:
        for name, kind in zip(wrong, kinds, strict=True):
            assert (f"more.{name}" if kind == "extra" else name) in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("training_follows", [False, True])
def test_another_architecture_is_refused(training_follows, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": make("test_vit").state_dict(), "arch": "test_vit"}, path)
    message = (
        r"weights.pth does not fit test_resnet \(it says that it is test_vit\): "
        r"it has not conv1.0.weight and \d+ more of the model's tensors, so that it is of another "
        "architecture$"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(make(), read_checkpoint(path), training_follows)


def test_a_classifier_of_another_size_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make(classes=3).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"is for 3 classes, .* for 5; .*=3"):
        load_weights(make(), read_checkpoint(path))
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="it is of another architecture"):
        load_weights(make(), read_checkpoint(path))
