"""What cannot train is found out on one batch, before anything is begun; each in one line."""

import json
from dataclasses import replace

import pytest
import torch

from isomax_evaluation import compare, train
from isomax_evaluation.data import reading
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...settings import grouped

ONE = replace(RECIPES["digits"], epochs=1)


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
    """That every image is decoded is the longest wait before a training."""

    def read(*arguments):
        raise AssertionError("the images were read first")

    monkeypatch.setattr(reading, "read_once", read)


def digits(output, model="test_resnet", image_size=32, loss="isomax", per_class=40, **change):
    return train(
        "digits",
        output,
        model=model,
        loss=loss,
        recipe=replace(ONE, **change),
        images_per_class=per_class,
        alpha=0.1,
        preprocessing=Preprocessing(image_size=image_size),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch_size": 31, "mixup": 0.2},
            "even number of images, and there are 31 in a step",
        ),
        # fewer images than one batch: all of them are, an odd number
        ({"batch_size": 256, "mixup": 0.2, "per_class": 20}, "there are 119 in a step"),
        (
            {"image_size": 33, "model": "test_vit"},
            "a step of 32 images of 3x33x33 with test_vit fails",
        ),
        (
            {"batch_size": 16, "accumulate": 16, "model": "resnet10t", "image_size": 16},
            "a step of 1 images of 3x16x16 with resnet10t fails: ValueError: Expected more than 1",
        ),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"auto_augment": "nonsense", "augment": "timm"}, "the transform fails: AssertionError"),
        ({"scale": (0.5,)}, "expected two numbers, from and to"),
        ({"smoothing": 1.5}, "smoothing is 1.5"),
        ({"clip_grad": -1.0}, "clip_grad is -1.0"),
        ({"hflip": 2.0}, "hflip is 2.0"),
        ({"reprob": 3.0}, "reprob is 3.0"),
        ({"sched": "plateau"}, "sched is 'plateau'; expected cosine"),
        (
            {"batch_size": 512, "accumulate": 512},
            "238 training images are fewer than 1 processes times 512 accumulated steps",
        ),
        ({"warmup_epochs": 3, "epochs": 2}, "longer than the training of 2 epochs"),
        pytest.param(
            {"mixed_precision": "fp16"},
            "fp16 takes a GPU",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        (
            {"loss": "dismax+fpr", "class_weights": True},
            "balanced_sampling does",
        ),
        ({"per_class": 2}, "takes 9 validation images, there are 7"),
    ],
)
def test_what_cannot_train_leaves_nothing(change, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        digits(tmp_path / "out", **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_comparison_tries_each_of_its_losses(tmp_path):
    with pytest.raises(InputError, match=r"even number of images, and there are 31 in a step"):
        compare(
            output=tmp_path / "out", losses=["isomax"], seeds=1,
            recipe=replace(ONE, batch_size=31, mixup=0.2),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_advice_that_is_given_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.undo()
    arguments = {"model": "test_resnet", "recipe": ONE, "image_size": 32, "images_per_class": 20}
    with pytest.raises(InputError, match="choose a larger alpha"):
        train("digits", tmp_path / "out", alpha=0.01, **grouped(arguments))
    train("digits", tmp_path / "out", alpha=0.2, **grouped(arguments))


def test_a_run_without_a_finished_epoch_makes_way(tmp_path, monkeypatch):
    monkeypatch.undo()
    from isomax_evaluation.training import train as training

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits(tmp_path / "out", lr=0.7)
    assert (tmp_path / "out/settings.json").is_file()
    digits(tmp_path / "out", lr=0.1)
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["recipe"]["lr"] == 0.1
    # and one that has finished some does not
    with pytest.raises(InputError, match=r"recipe.lr: 0.1 there, 0.7 given"):
        digits(tmp_path / "out", lr=0.7)


def test_a_comparison_and_a_training_do_not_take_each_others_folder(
    compared, tmp_path, monkeypatch
):
    monkeypatch.undo()
    before = (compared.output / "settings.json").read_bytes()
    with pytest.raises(InputError, match="holds another run"):
        digits(compared.output)
    assert (compared.output / "settings.json").read_bytes() == before
    digits(tmp_path / "out")
    before = (tmp_path / "out/settings.json").read_bytes()
    with pytest.raises(InputError, match="holds another run"):
        compare(output=tmp_path / "out", losses=["isomax"], seeds=1, recipe=ONE)
    assert (tmp_path / "out/settings.json").read_bytes() == before
