"""Registered models where timm looks for models: its registry, its factory, its training script."""

import pytest
import safetensors.torch
import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

import isomax_adapters.timm as isomax_timm
from isomax import IsoMaxHead, IsoMaxLoss, IsoMaxPlusHead
from isomax_adapters.timm.registry import is_ours


def test_every_architecture_with_a_classifier_is_registered():
    names = [name for name in timm.list_models() if not is_ours(name)]
    registered = [name for name in names if timm.is_model(f"isomax_{name}")]
    assert len(names) - len(registered) == sum(name.endswith("_enc") for name in names)
    for prefix in ("isomaxplus_", "dismax_", "softmax_"):
        assert all(timm.is_model(prefix + name) for name in registered)
    assert f"isomax_{names[0]}" in timm.list_models(module="isomax")


def test_pretrained_weights_are_listed_as_those_of_the_architecture():
    plain = timm.list_pretrained("resnet18*")
    for prefix in ("isomax_", "isomaxplus_", "dismax_", "softmax_"):
        assert timm.list_pretrained(f"{prefix}resnet18*") == [prefix + name for name in plain]
        assert timm.models.is_model_pretrained(f"{prefix}resnet18.a1_in1k")
        assert not timm.models.is_model_pretrained(f"{prefix}test_mambaout")
        for name in ("resnet18", "resnet18.a1_in1k", "test_mambaout"):
            ours = timm.models.get_pretrained_cfg(prefix + name).to_dict()
            theirs = timm.models.get_pretrained_cfg(name).to_dict()
            assert ours == theirs | {"architecture": prefix + name.partition(".")[0]}
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.models.get_pretrained_cfg("isomax_resnet18.of_doom")


def test_input_arguments_are_resolved_as_timms_scripts_do():
    arguments = timm.models.resolve_model_input_args(
        "isomax_test_vit", {"img_size": 96}, num_classes=3, pretrained=False
    )
    model = timm.create_model(**arguments).eval()
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 3)
    assert model.pretrained_cfg["architecture"] == "isomax_test_vit"
    assert model.default_cfg is model.pretrained_cfg


def test_batch_norm_that_is_frozen_trains_as_it_evaluates():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    model = timm.create_model("isomax_test_resnet", num_classes=3, drop_in=False, freeze_bn=True)
    copy = ModelEmaV3(model).module
    expected = model.eval()(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.testing.assert_close(model.train()(images), expected)
    torch.testing.assert_close(copy.train()(images), expected)
    assert all(torch.equal(now, before[name]) for name, now in model.named_buffers())
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    plain = timm.create_model("isomax_test_resnet", num_classes=3, drop_in=False)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain.train()(images), expected)


def test_cross_entropy_on_a_registered_model_is_the_isomax_loss():
    """What timm's train.py does with it: plain loss on training-mode logits, then validation."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    registered = timm.create_model("isomax_test_resnet", num_classes=4)
    attached = isomax_timm.attach(timm.create_model("test_resnet", num_classes=4))
    attached.load_state_dict(registered.state_dict())
    theirs = nn.CrossEntropyLoss()(registered.train()(images), labels)
    ours = IsoMaxLoss()(attached.train()(images), labels)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    torch.testing.assert_close(registered.eval()(images), attached.eval()(images))


def test_as_timms_trainer_uses_it(tmp_path):
    """Optimiser, EMA, checkpoint, resume and validation in the way of timm's train.py."""
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    model = timm.create_model("isomax_test_resnet", num_classes=4, pretrained=False)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05)
    ema = ModelEmaV3(model, decay=0.5)
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), decreasing=True
    )
    losses = []
    for epoch in range(6):
        model.train()
        loss = nn.CrossEntropyLoss()(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model, step=epoch)
        losses.append(float(loss.detach()))
        model.eval()
        with torch.no_grad():
            validation = float(nn.CrossEntropyLoss()(model(images), labels))
        saver.save_checkpoint(epoch, metric=validation)
    assert losses[-1] < losses[0]
    other = timm.create_model("isomax_test_resnet", num_classes=4)
    assert resume_checkpoint(other, str(tmp_path / "last.pth.tar")) == 6
    assert torch.equal(other.eval()(images), model.eval()(images))
    load_checkpoint(other, str(tmp_path / "last.pth.tar"), use_ema=True)
    assert torch.equal(other.eval()(images), ema.module.eval()(images))


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize("features_only", [False, True])
def test_pretrained_weights_come_from_where_the_architecture_has_them(key, features_only, tmp_path):
    """With a stand-in for the download: the weights file of the architecture itself."""
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=6).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    model = timm.create_model(
        "isomax_test_resnet",
        pretrained=True,
        features_only=features_only,
        **{key: {"file": str(tmp_path / "weights.pth"), "num_classes": 6, "classifier": "fc"}},
        **({} if features_only else {"num_classes": 5}),
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    if features_only:
        torch.testing.assert_close(model(images)[-1], plain.forward_features(images))
        return
    torch.testing.assert_close(model.forward_features(images), plain.forward_features(images))
    assert isinstance(model.get_classifier(), IsoMaxHead)
    assert model.num_classes == 5


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_file_may_hold_weights_of_a_registered_model(key, suffix, tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model("isomaxplus_test_resnet", num_classes=6).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": trained.state_dict()}, path)
    else:
        safetensors.torch.save_file(trained.state_dict(), path)
    images = torch.randn(2, 3, 64, 64)

    def make(**cfg):
        return timm.create_model(
            "isomaxplus_test_resnet",
            pretrained=True,
            **{key: {"file": str(path), **cfg}},
            num_classes=6,
        ).eval()

    assert torch.equal(make(num_classes=6)(images), trained(images))
    # as with linear classifiers: --pretrained-path of timm's train.py asks for another head so
    other = make(num_classes=-1, classifier="fc")
    assert torch.equal(other.forward_features(images), trained.forward_features(images))
    assert not torch.equal(other(images), trained(images))
    features = timm.create_model(
        "isomaxplus_test_resnet",
        pretrained=True,
        features_only=True,
        **{key: {"file": str(path)}},
    ).eval()
    torch.testing.assert_close(features(images)[-1], trained.forward_features(images))
    with pytest.raises(RuntimeError, match="distance_scale"):
        timm.create_model(
            "isomax_test_resnet",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path), "num_classes": 6},
            num_classes=6,
        )


def test_tags_reach_the_architecture():
    with torch.device("meta"):
        model = timm.create_model("isomax_resnet18.a1_in1k")
    assert model.pretrained_cfg["tag"] == "a1_in1k"


def test_the_initial_values_of_the_classifier_can_be_scaled_and_shifted():
    """What ``--head-init-scale`` and ``--head-init-bias`` of timm's train.py do."""
    model = timm.create_model("isomaxplus_test_resnet", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    prototypes = model.get_classifier().prototypes.clone()
    logits = model(images)
    with torch.no_grad():
        model.get_classifier().weight.mul_(0.5)
        model.get_classifier().bias.mul_(0.5)
    nn.init.constant_(model.get_classifier().bias, -7.0)
    assert torch.equal(model.get_classifier().prototypes, prototypes / 2)
    torch.testing.assert_close(model(images), logits)  # directions are the same, and no bias


def test_without_classes_until_they_are_known():
    model = timm.create_model("isomaxplus_test_resnet", num_classes=0, drop_in=False)
    assert model(torch.rand(2, 3, 32, 32)).dim() == 2
    model.reset_classifier(4)
    assert isinstance(model.get_classifier(), IsoMaxPlusHead)
    assert not model.get_classifier().drop_in


def test_small_images_keep_their_resolution_in_the_stem():
    plain = timm.create_model("softmax_resnet18", num_classes=4)
    small = timm.create_model("softmax_resnet18", num_classes=4, small_images=True)
    images = torch.randn(2, 3, 32, 32)
    assert plain.forward_features(images).shape[-1] == 1
    assert small.forward_features(images).shape[-1] == 4
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: isomax_timm.create_model("resnet81"), "did you mean resnet18"),
        (
            lambda: timm.create_model("isomax_vit_tiny_patch16_224", small_images=True),
            "ResNet-like",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
