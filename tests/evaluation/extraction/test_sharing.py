"""Features of one backbone serve all heads on it."""

import copy

import pytest
import timm
import torch

from isomax_adapters.pytorch_ood import Parts, digests_of_weights
from isomax_adapters.timm import create_model
from isomax_evaluation.extraction.one_pass import one_pass
from isomax_evaluation.extraction.sharing import adopt
from isomax_evaluation.extraction.store import keeper


def place(store, model, parts, images="a", preprocessing=None):
    weights = digests_of_weights(model, parts.classifiers)
    return keeper(store, weights, preprocessing, images, 10)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("test_resnet", "isomaxplus"),
        ("test_vit", "dismax"),
        ("tf_mobilenetv3_small_minimal_100", "isomax"),
    ],
)
def test_another_head_takes_the_features_and_gives_its_own_logits(tmp_path, name, head):
    backbone = timm.create_model(name, num_classes=3).eval()
    other = create_model(f"{head}_{name}", num_classes=4).eval()
    shared = {
        key: value
        for key, value in backbone.state_dict().items()
        if key in other.state_dict() and other.state_dict()[key].shape == value.shape
    }
    other.load_state_dict(shared, strict=False)
    size = backbone.default_cfg["input_size"][1]
    images, labels = torch.randn(10, 3, size, size), torch.arange(10) % 3
    first, second = Parts(backbone), Parts(other)
    kept = place(tmp_path, backbone, first)
    for _ in one_pass(first, [(images, labels)], kept):
        pass
    mine = place(tmp_path, other, second)
    assert mine.read() is None
    adopt(mine, second)
    found = mine.read()
    assert torch.equal(found.features, kept.read().features)
    assert torch.equal(found.labels, labels)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, other(images), atol=1e-4, rtol=1e-4)


def test_nothing_is_taken_from_another_backbone_or_of_other_images(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3).eval()
    parts, images, labels = Parts(model), torch.randn(10, 3, 64, 64), torch.zeros(10).long()
    for _ in one_pass(parts, [(images, labels)], place(tmp_path, model, parts)):
        pass
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.conv1[0].weight[0, 0, 0, 0] += 1
        model.get_classifier().bias[0] += 1
    for changed in (
        place(tmp_path, tuned, Parts(tuned)),
        place(tmp_path, model, parts, images="b"),
        place(tmp_path, model, parts, preprocessing={"crop_pct": 0.9}),
    ):
        adopt(changed, parts)
        assert changed.read() is None
    mine = place(tmp_path, model, parts)
    adopt(mine, parts)
    assert mine.read() is not None


def test_logits_that_are_more_than_the_classifiers_are_not_made_up(tmp_path):
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3).eval()
    assert not Parts(model).classifies_features
    assert Parts(timm.create_model("test_convnext", num_classes=3).eval()).classifies_features
