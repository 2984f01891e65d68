"""A model of someone's own training loop becomes a calibrated model folder and a file."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Compose, Normalize

from isomax_adapters.onnx import export
from isomax_adapters.pytorch_ood import load_detector, read_detector
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration, save_model
from isomax_evaluation.deployment import calibrate_model
from isomax_evaluation.output.errors import InputError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).train()


def batches(count, seed=0, side=160):
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(images, torch.arange(count) % 3), batch_size=16)


def test_two_calls_make_a_file(model, tmp_path):
    folder = calibrate_model(
        model, batches(40), tmp_path / "model", ["ash", "birch", "fir"], "ViM", batches(60, 1)
    )
    path = export(folder, tmp_path / "m.onnx")
    assert model.training
    found = load_calibration(folder)
    assert (found.score, found.samples, found.guarantee) == ("ViM", 40, "established")
    assert read_detector(folder).fit_images == 60
    scores = torch.cat([load_detector(folder).predict(x) for x, _ in batches(40)])
    torch.testing.assert_close(
        scores.double().sort().values, torch.tensor(found.scores).double(), rtol=1e-4, atol=1e-4
    )
    assert Scorer(path).class_names == ["ash", "birch", "fir"]


def test_without_a_detector_it_is_the_heads_own_score(model, tmp_path):
    folder = calibrate_model(model, batches(40), tmp_path / "model")
    assert load_calibration(folder).score == "energy_score"
    own = timm.create_model("isomaxplus_test_resnet", num_classes=3)
    folder = calibrate_model(own, batches(40), tmp_path / "own")
    assert load_calibration(folder).score == "minimum_distance_score"


def diverged():
    model = timm.create_model("test_resnet", num_classes=3)
    with torch.no_grad():
        model.bn1.weight[0] = float("nan")
    return model.train()


class Prepared(TensorDataset):
    transform = Compose([Normalize([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": batches(40, side=32)}, r"images are \(3, 32, 32\), a file would make them"),
        ({"held_out": iter([])}, "held_out is used up after one pass"),
        ({"held_out": []}, "held_out gives nothing; expected batches of"),
        ({"held_out": [{"image": torch.zeros(4, 3, 160, 160)}]}, "held_out gives dict; expected"),
        (
            {"held_out": [(torch.zeros(4, 3, 160, 160, dtype=torch.uint8), torch.zeros(4))]},
            "held_out gives tensors of uint8 .* expected float32",
        ),
        ({"held_out": batches(5)}, "takes at least 19 held-out samples"),
        ({"detector": "ViM"}, "ViM is fitted on training images; give a loader of them"),
        ({"detector": "nothing"}, "unknown detector nothing"),
        ({"detector": "Gram"}, "Gram: a list in feature_layers cannot be written into a model"),
        ({"class_names": ["a"]}, "1 class names for 3 classes"),
        ({"alpha": 2}, "alpha is 2"),
        ({"model": nn.Linear(2, 2)}, "Linear is no timm model"),
        ({"model": diverged()}, "the model has NaN or infinity in bn1.weight"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(change, message, model, tmp_path):
    given = {"model": model, "held_out": batches(40), "output": tmp_path / "model"} | change
    with pytest.raises(InputError, match=message):
        calibrate_model(**given)
    assert not (tmp_path / "model").exists()
    assert model.training


def test_images_that_are_normalised_otherwise_are_refused(model, tmp_path):
    held = batches(40)
    held.dataset.__class__ = Prepared
    with pytest.raises(InputError, match=r"normalised with the mean .*, a file would use"):
        calibrate_model(model, held, tmp_path / "model")


def test_a_detector_of_maps_says_that_tokens_are_none(tmp_path):
    vit = timm.create_model("test_vit", num_classes=3)
    with pytest.raises(InputError, match="the model's last features are tokens"):
        calibrate_model(vit, batches(40), tmp_path / "model", detector="ReAct-maps")


def test_what_no_file_holds_is_said_before_fitting(model, tmp_path, capfd):
    calibrate_model(model, batches(40), tmp_path / "model", detector="GradNorm")
    said = capfd.readouterr().err
    assert "GradNorm cannot be exported" in said
    assert "EnergyBased is nearest" in said
    assert said.index("cannot be exported") < said.index("calibrating on")


def test_a_singular_covariance_is_said(model, tmp_path, capfd):
    calibrate_model(
        model, batches(40), tmp_path / "model", detector="MahalanobisPP", training=batches(30, 1)
    )
    assert "the covariance of 30 images is singular" in capfd.readouterr().err


def test_what_fails_leaves_the_folder_that_was_there(model, tmp_path, monkeypatch):
    folder = calibrate_model(model, batches(40), tmp_path / "model")

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("isomax_evaluation.deployment.equipping.save_detector", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(
            model, batches(40), folder, detector="MahalanobisPP", training=batches(30, 1)
        )
    assert load_calibration(folder).score == "energy_score"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_models_detector_is_refused_by_its_digest(model, tmp_path):
    folder = calibrate_model(
        model, batches(40), tmp_path / "model", detector="KNN", training=batches(60, 1)
    )
    other = timm.create_model("test_resnet", num_classes=3)
    save_model(other, tmp_path / "other")
    for path in (*folder.glob("detector.*"), *folder.glob("calibration.*")):
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="fitted on a model with the digest"):
        export(tmp_path / "other", tmp_path / "m.onnx")
