"""What timm's own model tests ask of a model, of ours on a dozen small architectures.

Each has another form of classifier: a linear layer, a 1x1 convolution, a pair, a batch norm before
it, a list of them, layers of a head module.
"""

from itertools import cycle, product

import pytest
import timm
import torch
from timm.layers import set_scriptable
from timm.models import GraphExtractNet, get_notrace_functions, get_notrace_modules
from timm.models._input import get_model_input_config
from timm.utils import reparameterize_model
from timm.utils.onnx import onnx_export
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import isomax_adapters.timm as isomax_timm
from isomax.heads import HEADS
from isomax_adapters.timm.attaching import classifier_names, head_modules

PREFIXES = {head.prefix: name for name, head in HEADS.items()}
ARCHITECTURES = (
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_convnext",
    "test_nfnet",
    "test_mambaout",
    "dla46_c",
    "mobilenetv3_small_050",
    "levit_128s",
    "repvit_m0_9",
    "deit_tiny_distilled_patch16_224",
    "efficientvim_m1",
)
CLASSES = 7  # no layer of timm's has this width by itself

every_model = pytest.mark.parametrize(
    ("prefix", "architecture"), list(product(PREFIXES, ARCHITECTURES))
)
# what takes a second each: every architecture, every head, but not all their pairs
each_model = pytest.mark.parametrize(
    ("prefix", "architecture"), list(zip(cycle(PREFIXES), ARCHITECTURES, strict=False))
)


def make(prefix, architecture, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(prefix + architecture, num_classes=CLASSES, **kwargs)
    with torch.no_grad():
        for head in head_modules(model):  # as after some training: IsoMax starts at zero
            nn.init.normal_(head.prototypes)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images_for(model, batch=2):
    config = get_model_input_config(model)
    channels, *size = config["input_size"]
    size = size if config["fixed_input_size"] else (64, 64)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@every_model
def test_forward_backward(prefix, architecture):
    model = make(prefix, architecture)
    images = images_for(model)
    model.eval()
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()
        pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
    assert isomax_timm.head_of(model) == PREFIXES[prefix]
    model.train()
    model(images).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each_model
def test_classifier_goes_and_comes_back(prefix, architecture):
    with torch.device("meta"):
        model = timm.create_model(prefix + architecture).eval()
        bare = timm.create_model(prefix + architecture, num_classes=0).eval()
        images = images_for(model).to("meta")
        heads = len(head_modules(model))
        width = model.head_hidden_size
    for each in (model, bare):
        each.to(torch.float64)
        each.reset_classifier(0)
        assert each.num_classes == 0
        assert not head_modules(each)
        assert each(images.double()).shape == (2, width)
        each.reset_classifier(CLASSES)
        assert each(images.double()).shape == (2, CLASSES)
        assert len(head_modules(each)) in (heads, 1)
        assert all(p.dtype == torch.float64 and p.is_meta for p in each.parameters())
        assert not any(module.training for module in each.modules())
        assert classifier_names(each)


@every_model
def test_features_only_is_the_backbone(prefix, architecture):
    features = {}
    for name in (architecture, prefix + architecture):
        torch.manual_seed(0)
        model = timm.create_model(name, features_only=True, feature_cls="getter").eval()
        features[name] = model(images_for(model))
    torch.testing.assert_close(features[prefix + architecture], features[architecture])


@each_model
def test_fx(prefix, architecture):
    model = make(prefix, architecture).eval()
    images = images_for(model)
    tracing = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=tracing)
    traced = create_feature_extractor(
        model,
        train_return_nodes=train_nodes[-1:],
        eval_return_nodes=eval_nodes[-1:],
        tracer_kwargs=tracing,
    )
    with torch.no_grad():
        (logits,) = traced.eval()(images).values()
        torch.testing.assert_close(logits, model(images))


@each_model
def test_torchscript(prefix, architecture):
    with set_scriptable(True):
        model = make(prefix, architecture).eval()
    images = images_for(model)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@each_model
def test_trace(prefix, architecture):
    model = make(prefix, architecture).eval()
    images = images_for(model)
    traced = torch.jit.trace(model, images)
    torch.testing.assert_close(traced(images), model(images))


@each_model
def test_reparameterized(prefix, architecture):
    model = make(prefix, architecture).eval()
    images = images_for(model)
    with torch.no_grad():
        fused = reparameterize_model(model)
        torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_layers_are_taken_out_by_name(prefix):
    model = make(prefix, "test_resnet").eval()
    images = images_for(model)
    with torch.no_grad():
        maps, logits = GraphExtractNet(model, ["layer4", "fc"]).eval()(images)
        torch.testing.assert_close(maps, model.forward_features(images))
        torch.testing.assert_close(logits, model(images))


@pytest.mark.parametrize(
    ("prefix", "architecture"),
    [("isomax_", "test_resnet"), ("isomaxplus_", "dla46_c"), ("dismax_", "mobilenetv3_small_050")],
)
def test_exported_as_timms_script_does(prefix, architecture, tmp_path):
    """With the older exporter, which ``onnx_export.py`` uses."""
    model = make(prefix, architecture, exportable=True)
    onnx_export(
        model, str(tmp_path / "m.onnx"), check_forward=True, input_size=(3, 64, 64), batch_size=2
    )
