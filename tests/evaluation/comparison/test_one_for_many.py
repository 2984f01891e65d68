"""A text where a list is meant is a list of one."""

import pytest
import timm
import torch

from isomax_adapters.pytorch_ood import detectors_for, why_not
from isomax_adapters.timm import save_model
from isomax_evaluation import compare
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.output.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    return save_model(model, tmp_path_factory.mktemp("m") / "model", list("0123456"))


def test_compare_takes_one_of_each(folder, tmp_path):
    done = compare(models=str(folder), ood="uniform-noise", detectors="MaxLogit", losses=(),
                   test_images=20, output=tmp_path / "out", reading=Reading(workers=0))  # fmt: skip
    assert set(done.results["ood"]) == {"uniform-noise"}
    assert set(done.results["detector"]) == {"MaxLogit"}
    for name in ("models", "losses", "detectors"):
        wrong = {"models": str(folder), "ood": "uniform-noise", name: "nonsense"}
        with pytest.raises(InputError, match="nonsense"):
            compare(**wrong, output=tmp_path / "other")


def test_detectors_take_one_name():
    model = timm.create_model("test_resnet", num_classes=3).eval()
    assert list(detectors_for(model, "MaxLogit")) == ["MaxLogit"]
    assert list(why_not(model, "EntropicScore")) == ["EntropicScore"]
    with pytest.raises(ValueError, match="unknown detector maxlogit"):
        detectors_for(model, "maxlogit")


def test_a_text_is_no_list_of_class_names(tmp_path):
    model = timm.create_model("test_resnet", num_classes=2)
    with pytest.raises(ValueError, match="class_names is the text 'ab'; expected a list of names"):
        save_model(model, tmp_path / "m", "ab")
    assert not (tmp_path / "m").exists()
