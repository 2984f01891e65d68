"""A model is had from wherever users have it; nothing is unpickled."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from isomax_adapters.timm import CheckpointError, create_model, save_model
from isomax_adapters.timm.sources import SourceError, open_model


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One model, in all the places that it can be in."""
    root = tmp_path_factory.mktemp("places")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    save_model(model, root / "run/model", ["a", "b", "c"])
    save_file(model.state_dict(), root / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, root / "w.pth"
    )
    return root, model


@pytest.mark.parametrize(
    "source",
    [
        "{root}/run/model", "{root}/run", "local-dir:{root}/run/model",
        "test_resnet@{root}/w.safetensors", "test_resnet@{root}/w.pth",
    ],
)  # fmt: skip
def test_it_is_the_same_model_from_everywhere(source, places):
    root, model = places
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(open_model(source.format(root=root))(x), model(x))


def test_names_without_weights_at_hand_say_what_can_be_given(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("test_resnet.r160_in1k", "hf-hub:nobody/nothing"):
        with pytest.raises(SourceError, match="offline, give a model folder or"):
            open_model(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet18.nonesuch", "no weights 'nonesuch' of resnet18; it has a1_in1k, "),
        ("isomax_resnet18.nonesuch", "no weights 'nonesuch' of isomax_resnet18; it has a1_in1k, "),
        ("resnet81", "no model 'resnet81'; did you mean "),
        ("hub:timm/resnet18", "hub:timm/resnet18 is no model; expected hf-hub:REPOSITORY or"),
    ],
)
def test_names_that_timm_does_not_have_are_named_with_those_it_has(source, message):
    for opened in (open_model, create_model):
        with pytest.raises(SourceError, match=message):
            opened(source)


def test_a_checkpoint_with_code_is_refused_and_the_code_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(ran), "w")

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(CheckpointError):
        open_model(f"test_resnet@{tmp_path / 'w.pth'}")
    assert not ran.exists()


def test_tensors_that_are_missing_or_too_many_are_named(places, tmp_path):
    root, model = places
    tensors = dict(model.state_dict())
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["conv1.0.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_model(f"test_resnet@{tmp_path / 'w.safetensors'}")
    assert "conv1.0.weight" in str(error.value)
    assert "extra.weight" in str(error.value)
    with pytest.raises(CheckpointError, match="test_vit"):
        open_model(f"test_vit@{root / 'w.safetensors'}")
