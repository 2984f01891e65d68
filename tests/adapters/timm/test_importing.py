"""From what timm's training script leaves behind to a model folder."""

import argparse

import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3

import isomax_adapters.timm as isomax_timm
from isomax_adapters.timm import CheckpointError, folder_from_checkpoint, model_from_checkpoint

ARGS = {  # of timm's train.py; those of optimiser, augmentation and the rest are left out here
    "model": "isomax_test_resnet",
    "num_classes": None,
    "gp": None,
    "img_size": 96,
    "input_size": None,
    "in_chans": None,
    "crop_pct": 1.0,
    "mean": [0.1, 0.2, 0.3],
    "std": None,
    "interpolation": "",
    "model_kwargs": {},
}


def trained(tmp_path, built=None, ema=True, **args):
    """``model_best.pth.tar``, and the model that it is of."""
    args = argparse.Namespace(**{**ARGS, **args})
    torch.manual_seed(0)
    model = built or timm.create_model(args.model, num_classes=4)
    average = ModelEmaV3(model, decay=0.5)
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        args,
        model_ema=average if ema else None,
        checkpoint_dir=str(tmp_path),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    average.update(model)
    saver.save_checkpoint(0, metric=50.0)
    return tmp_path / "model_best.pth.tar", (average.module if ema else model).eval()


@pytest.mark.parametrize("ema", [True, False])
def test_a_training_of_timm_becomes_a_model_folder(ema, tmp_path):
    path, model = trained(tmp_path, ema=ema)
    names = ["ash", "birch", "cedar", "fir"]
    folder = folder_from_checkpoint(path, tmp_path / "model", class_names=names)
    loaded = isomax_timm.load_model(folder)
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(loaded(images), model(images))
    assert isomax_timm.head_of(loaded) == "isomax"
    assert loaded.pretrained_cfg["label_names"] == names
    config = timm.data.resolve_model_data_config(loaded)
    assert config["input_size"] == (3, 96, 96)
    assert config["crop_pct"] == 1.0
    assert tuple(config["mean"]) == (0.1, 0.2, 0.3)
    assert tuple(config["std"]) == timm.data.resolve_model_data_config(model)["std"]
    assert isomax_timm.load_calibration(folder) is None


def test_the_model_is_built_as_it_was_for_training(tmp_path):
    built = timm.create_model(
        "dismax_test_vit",
        num_classes=3,
        img_size=96,
        in_chans=1,
        class_token=False,
        global_pool="avg",
    )
    path, model = trained(
        tmp_path,
        built,
        model="dismax_test_vit",
        gp="avg",
        mean=None,
        input_size=[1, 96, 96],
        img_size=None,
        model_kwargs={"class_token": False},
    )
    loaded = model_from_checkpoint(path)
    images = torch.randn(2, 1, 96, 96)
    assert not loaded.training
    assert torch.equal(loaded(images), model(images))
    again = isomax_timm.load_model(folder_from_checkpoint(path, tmp_path / "model"))
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("name", ["test_resnet", "isomaxplus_levit_128s"])
def test_a_bare_state_dict_takes_the_name_of_its_architecture(name, tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    torch.save(model.state_dict(), path)
    images = torch.randn(2, 3, 224, 224)
    loaded = model_from_checkpoint(path, name)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(CheckpointError, match="does not say of which architecture it is; name it"):
        model_from_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"make the model with num_classes=3, or"):
        model_from_checkpoint(path, name, num_classes=5)
    with pytest.raises(ValueError, match="did you mean test_resnet"):
        model_from_checkpoint(path, "test_resnets")


def test_the_head_has_to_be_the_one_that_was_trained(tmp_path):
    path, _ = trained(tmp_path)
    message = r"is isomax \(fc.prototypes\), that of the model test_resnet is softmax; name"
    with pytest.raises(CheckpointError, match=message):
        folder_from_checkpoint(path, tmp_path / "model", "test_resnet")
    with pytest.raises(ValueError, match="2 class names for 4 classes"):
        folder_from_checkpoint(path, tmp_path / "model", class_names=["a", "b"])
    assert not (tmp_path / "model").exists()


def test_an_architecture_with_a_source_is_one(tmp_path):
    plain = timm.create_model("isomax_test_resnet", num_classes=4)
    source = isomax_timm.save_model(plain, tmp_path / "before")
    path, model = trained(tmp_path, model=f"local-dir:{source}")
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(model_from_checkpoint(path)(images), model(images))
