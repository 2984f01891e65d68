"""Heads of a timm model, started on its own features."""

import pytest
import timm
import torch
from torch import nn

from isomax import class_means, start_at_means
from isomax.functional import isomax_loss
from isomax_adapters.timm import attach, start_heads
from isomax_adapters.timm.attaching import head_modules


def images_of(size=32, count=24, classes=3):
    """Batches of noise whose brightness is the class; the last image is an outlier."""
    torch.manual_seed(1)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 3, size, size) + labels[:, None, None, None]
    labels[-1] = -1
    return list(zip(images.split(10), labels.split(10), strict=True))


def model_of(name, head=None):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    return attach(model, head) if head else model


@pytest.mark.parametrize("training", [True, False])
def test_prototypes_are_class_means_of_what_the_head_is_given(training):
    model, loader = model_of("test_resnet", "isomax+").train(training), images_of()
    model.bn1.eval()  # frozen
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = torch.get_rng_state()
    assert start_heads(model, loader) is model
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    model.eval()
    with torch.no_grad():
        features = torch.cat(
            [model.forward_head(model.forward_features(x), pre_logits=True) for x, _ in loader]
        )
    expected = class_means(features, torch.cat([y for _, y in loader]), 3).float()
    torch.testing.assert_close(model.fc.prototypes.detach(), expected)
    assert not model.fc._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "size"),
    [("dla46_c", 32), ("test_vit", 160), ("deit_tiny_distilled_patch16_224", 224)],
)
def test_every_head_of_a_model_gets_its_own(name, size):
    model, loader = model_of(name, "dismax"), images_of(size, count=9)
    start_heads(model, loader)
    heads = head_modules(model)
    assert len(heads) == (2 if "distilled" in name else 1)
    for head in heads:
        assert (head.prototypes.norm(dim=1) <= 1 + 1e-6).all()
    assert len({float(head.prototypes.detach().sum()) for head in heads}) == len(heads)


@pytest.mark.parametrize("head", ["isomax", None])
def test_what_starts_at_zero_gives_equal_posteriors(head):
    model, loader = model_of("test_resnet", head), images_of()
    start_heads(model, loader)
    logits = model.eval()(loader[0][0])
    torch.testing.assert_close(logits.log_softmax(dim=1), -torch.full((10, 3), 3.0).log())


def test_class_means_whatever_the_head():
    model, loader = model_of("test_resnet", "isomax"), images_of()
    start_heads(model, loader, start_at_means)
    images, labels = loader[0]
    loss = isomax_loss(model.eval()(images), labels)
    assert model.fc.prototypes.abs().sum() > 0
    assert loss < isomax_loss(torch.zeros(10, 3), labels)


def test_what_cannot_be_started_is_named_and_leaves_no_trace():
    model = model_of("dla46_c")
    with pytest.raises(TypeError, match="Conv2d is no head"):
        start_heads(model, images_of())
    assert isinstance(model.fc, nn.Conv2d)
    model = model_of("test_resnet", "isomax+").train()
    with pytest.raises(ValueError, match="gives no images"):
        start_heads(model, [])
    with pytest.raises(RuntimeError):
        start_heads(model, [(torch.randn(2, 5, 32, 32), torch.tensor([0, 1]))])
    assert model.training
    assert not model.fc._forward_pre_hooks
    with pytest.raises(ValueError, match="no sample of class 2"):
        start_heads(model, images_of(classes=2))
