"""A representative part of the sweep over timm's architectures, and what attach() promises."""

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

import isomax_adapters.timm as isomax_timm
from isomax import DisMaxHead, IsoMaxHead, IsoMaxLoss, IsoMaxPlusHead
from isomax_adapters.timm.attaching import classifier_names, head_modules
from isomax_adapters.timm.registry import is_ours

# one of each form that a classifier has in timm
FORMS = {
    "resnet18": 1,  # nn.Linear
    "ecaresnet50d_pruned": 1,  # timm's Linear
    "dla46_c": 1,  # 1x1 convolution
    "deit_tiny_distilled_patch16_224": 2,  # a pair
    "levit_128s": 2,  # a pair of batch norm and linear
    "levit_256d": 1,
    "repvit_m1": 2,  # a pair in a module of its own
    "iformer_t": 1,
    "crossvit_9_240": 2,  # an ensemble in a ModuleList
    "efficientvim_m1": 4,
    "efficientvim_m1_dist": 8,
    "cpubone_b0_bfrobust": 1,  # a linear layer in a wrapper
    "caformer_s18": 1,  # an MLP whose last layer counts
    "swiftformer_xs": 2,
    "sequencer2d_s": 1,  # a whole ClassifierHead
    "samvit_base_patch16": 1,  # created without classes
    "volo_d1_224": 2,  # with an auxiliary head on the tokens
    "vit_tiny_patch16_224": 1,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_classifier_leaf_gets_a_head(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1009)
        isomax_timm.attach(model)
        assert len(head_modules(model)) == FORMS[name]
        assert not any(
            isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape[0] == 1009
            for m in model.modules()
        )


@pytest.fixture
def small():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


@pytest.mark.parametrize(
    ("head", "head_class"),
    [("isomax", IsoMaxHead), ("isomax+", IsoMaxPlusHead), ("dismax", DisMaxHead)],
)
def test_it_is_still_a_timm_model(small, head, head_class):
    images = torch.randn(2, 3, 64, 64)
    small.eval()
    before = small.forward_head(small.forward_features(images), pre_logits=True)
    model = isomax_timm.attach(small, head)
    assert model is small
    assert isinstance(model.get_classifier(), head_class)
    assert model.num_classes == 5
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, before)
    torch.testing.assert_close(model(images), model.get_classifier()(features))
    assert isomax_timm.head_of(model) == head
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), head_class)
    assert model(images).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images).shape == features.shape
    model.reset_classifier(4)
    assert isinstance(model.get_classifier(), head_class)
    model.set_grad_checkpointing()
    model.train()
    model(images).sum().backward()


def test_layer_wise_learning_rates_reach_the_head(small):
    model = isomax_timm.attach(small)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1.0, layer_decay=0.5)
    scale = {
        id(parameter): group["lr_scale"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert scale[id(model.get_classifier().prototypes)] == 1
    assert scale[id(next(model.conv1.parameters()))] < 0.5


def test_copies_keep_what_attach_added(small):
    model = isomax_timm.attach(small, "isomax+", drop_in=True)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        ModelEmaV3(model).module,
    ):
        other.reset_classifier(2)
        assert isinstance(other.get_classifier(), IsoMaxPlusHead)
        assert other.get_classifier().drop_in
        assert other.num_classes == 2
    assert model.num_classes == 5


def test_layers_before_the_last_keep_their_weights():
    model = timm.create_model("caformer_s18", num_classes=5)
    hidden = model.head.fc.fc1.weight.clone()
    isomax_timm.attach(model)
    assert torch.equal(model.head.fc.fc1.weight, hidden)
    assert classifier_names(model) == ["head.fc.fc2"]


def test_a_hidden_layer_as_wide_as_there_are_classes_is_left_alone():
    model = timm.create_model("caformer_s18", num_classes=2048)
    assert model.head.fc.fc1.out_features == 2048
    isomax_timm.attach(model)
    assert isinstance(model.head.fc.fc1, nn.Linear)
    assert len(head_modules(model)) == 1


def test_classes_can_be_changed_or_added(small):
    assert isomax_timm.attach(small, num_classes=9).num_classes == 9
    headless = timm.create_model("test_vit", num_classes=0)
    assert isomax_timm.attach(headless, num_classes=3)(torch.rand(1, 3, 160, 160)).shape == (1, 3)
    # and another kind of head in the place of one of ours
    assert isinstance(isomax_timm.attach(small, "dismax").get_classifier(), DisMaxHead)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: isomax_timm.attach(timm.create_model("test_resnet"), "softmin"),
            "isomax, isomax+",
        ),
        (lambda: isomax_timm.attach(timm.create_model("test_vit", num_classes=0)), "num_classes"),
        (lambda: isomax_timm.attach(nn.Sequential(nn.Linear(2, 2))), "no classifier"),
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


# -- Registered models -------------------------------------------------------------------------


def test_every_architecture_with_a_classifier_is_registered():
    names = [name for name in timm.list_models() if not is_ours(name)]
    registered = [name for name in names if timm.is_model(f"isomax_{name}")]
    assert len(names) - len(registered) == sum(name.endswith("_enc") for name in names)
    for prefix in ("isomaxplus_", "dismax_", "softmax_"):
        assert all(timm.is_model(prefix + name) for name in registered)
    assert f"isomax_{names[0]}" in timm.list_models(module="isomax")


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
    from timm.models import load_checkpoint, resume_checkpoint
    from timm.utils import CheckpointSaver

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


def test_pretrained_weights_come_from_where_the_architecture_has_them(tmp_path):
    """With a stand-in for the download: the weights file of the architecture itself."""
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=1000)
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    model = timm.create_model(
        "isomax_test_resnet",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
        num_classes=6,
    )
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        model.eval().forward_features(images), plain.eval().forward_features(images)
    )
    assert isinstance(model.get_classifier(), IsoMaxHead)
    assert model.num_classes == 6
    tagged = timm.models.get_pretrained_cfg("resnet18.a1_in1k")
    assert tagged is not None  # and tags are passed on:
    with torch.device("meta"):
        model = timm.create_model("isomax_resnet18.a1_in1k")
    assert model.pretrained_cfg["tag"] == "a1_in1k"


def test_small_images_keep_their_resolution_in_the_stem():
    plain = timm.create_model("softmax_resnet18", num_classes=4)
    small = timm.create_model("softmax_resnet18", num_classes=4, small_images=True)
    images = torch.randn(2, 3, 32, 32)
    assert plain.forward_features(images).shape[-1] == 1
    assert small.forward_features(images).shape[-1] == 4
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
