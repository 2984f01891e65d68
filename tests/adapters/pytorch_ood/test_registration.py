import inspect
import pickle

import pytest
import pytorch_ood.detector
import pytorch_ood.loss
import torch
from pytorch_ood.api import Detector, DetectorInfo, LossInfo

import isomax
from isomax_adapters.pytorch_ood import register, unregister

LOSSES = {"FractionalProbabilityLoss", "IsoMaxLoss"}
DETECTORS = {
    "EntropicScore",
    "MahalanobisPP",
    "MaxMeanLogitEntropyScore",
    "MinimumDistanceScore",
    "PostHocDisMax",
    "PostHocIsoMax",
    "PostHocIsoMaxPlus",
    "RMDPP",
}


@pytest.fixture(autouse=True)
def _clean():
    unregister()
    yield
    unregister()


def listed(module, base):
    """The components of a module, as pytorch-ood's own tests and documentation list them."""
    return {
        name: component
        for name, component in vars(module).items()
        if inspect.isclass(component)
        and issubclass(component, base)
        and not inspect.isabstract(component)
        and component.__module__.startswith(module.__name__)
    }


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


def test_pytorch_oods_listing_finds_them_with_their_info():
    places = [
        (pytorch_ood.loss, torch.nn.Module, LossInfo, LOSSES),
        (pytorch_ood.detector, Detector, DetectorInfo, DETECTORS),
    ]
    before = [listed(module, base) for module, base, _, _ in places]
    register()
    for (module, base, info, names), earlier in zip(places, before, strict=True):
        found = listed(module, base)
        assert set(found) - set(earlier) == names
        for name in names:
            assert isinstance(vars(found[name])["info"], info)
            assert found[name].info.tasks
    unregister()
    assert [listed(module, base) for module, base, _, _ in places] == before
    assert isomax.IsoMaxLoss.__module__ == "isomax.losses"


def test_pickles_of_before_can_be_read_back_and_those_of_in_between_while_registered():
    criterion = isomax.IsoMaxLoss(entropic_scale=5.0)
    earlier = pickle.dumps(criterion)
    register()
    for pickled in (earlier, pickle.dumps(criterion)):
        assert pickle.loads(pickled).entropic_scale == 5.0
    unregister()
    assert pickle.loads(earlier).entropic_scale == 5.0


def test_another_component_of_the_name_is_not_replaced(monkeypatch):
    monkeypatch.setattr(pytorch_ood.loss, "IsoMaxLoss", object, raising=False)
    with pytest.raises(RuntimeError, match="of its own"):
        register()
    assert not hasattr(pytorch_ood.detector, "EntropicScore")
    unregister()
    assert pytorch_ood.loss.IsoMaxLoss is object
