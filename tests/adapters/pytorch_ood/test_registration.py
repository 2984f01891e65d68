import pytest
import pytorch_ood.detector
import pytorch_ood.loss

import isomax
from isomax_adapters.pytorch_ood import register, unregister


@pytest.fixture(autouse=True)
def _clean():
    unregister()
    yield
    unregister()


def test_components_appear_when_asked_and_go_when_asked():
    assert not hasattr(pytorch_ood.detector, "EntropicScore")
    before = list(pytorch_ood.detector.__all__)
    register()
    register()
    assert pytorch_ood.loss.IsoMaxLoss is isomax.IsoMaxLoss
    assert pytorch_ood.detector.EntropicScore is isomax.EntropicScore
    assert pytorch_ood.detector.__all__.count("EntropicScore") == 1
    unregister()
    unregister()
    assert not hasattr(pytorch_ood.detector, "EntropicScore")
    assert pytorch_ood.detector.__all__ == before


def test_another_component_of_the_name_is_not_replaced(monkeypatch):
    monkeypatch.setattr(pytorch_ood.loss, "IsoMaxLoss", object, raising=False)
    with pytest.raises(RuntimeError, match="of its own"):
        register()
    assert not hasattr(pytorch_ood.detector, "EntropicScore")
    unregister()
    assert pytorch_ood.loss.IsoMaxLoss is object
