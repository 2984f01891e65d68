import pytest
import timm
import torch
from timm.layers import apply_test_time_pool
from torch.nn import functional as F


@pytest.mark.parametrize("prefix", ["isomax_", "isomaxplus_", "dismax_", ""])
def test_a_larger_image_gets_the_logits_of_its_places(prefix):
    """What ``--test-pool`` of timm's validate.py does with a model of 160 pixels at 256."""
    torch.manual_seed(0)
    model = timm.create_model(f"{prefix}test_resnet", num_classes=4).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        maps = F.avg_pool2d(model.forward_features(images), model.default_cfg["pool_size"], 1)
        assert maps.shape[2:] == (4, 4)
        logits = model.get_classifier()(maps.permute(0, 2, 3, 1).flatten(0, 2))
        logits = logits.unflatten(0, (2, 16))
        expected = (logits.mean(dim=1) + logits.amax(dim=1)) / 2
        pooled, used = apply_test_time_pool(model, {"input_size": (3, 256, 256)})
        assert used
        torch.testing.assert_close(pooled(images), expected)
