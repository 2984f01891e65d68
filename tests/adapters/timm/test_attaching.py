"""A representative part of the sweep over timm's architectures, and what attach() promises."""

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, reparameterize_model
from torch import nn

import isomax_adapters.timm as isomax_timm
from isomax import DisMaxHead, IsoMaxHead, IsoMaxPlusHead
from isomax_adapters.timm.attaching import classifier_names, head_modules

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
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_model_without_classes_gets_its_head_later():
    model = isomax_timm.attach(timm.create_model("test_vit", num_classes=0), "dismax", 0)
    assert isomax_timm.head_of(model) == "dismax"
    assert not head_modules(model)
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), DisMaxHead)


def test_the_classifier_is_found_after_a_forward_pass_that_left_tensors_behind():
    model = timm.create_model("levit_128s", num_classes=5).eval()
    model(torch.randn(1, 3, 224, 224))  # its attention biases are kept, with their gradient
    isomax_timm.attach(model)
    assert len(head_modules(model)) == 2


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9", "shvit_s1", "iformer_t"])
def test_a_batch_norm_before_a_head_is_not_folded_into_it(name):
    torch.manual_seed(0)
    model = isomax_timm.attach(timm.create_model(name, num_classes=5), "isomax+").eval()
    (norm, *_) = (m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    nn.init.uniform_(norm.weight, 0.2, 5)
    nn.init.uniform_(norm.running_mean, -1, 1)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        fused = reparameterize_model(model)
        torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)
        assert len(list(fused.modules())) < len(list(model.modules()))
        again = reparameterize_model(fused)
        torch.testing.assert_close(again(images), fused(images), rtol=0, atol=0)
    model.reset_classifier(3)
    assert reparameterize_model(model)(images).shape == (2, 3)
