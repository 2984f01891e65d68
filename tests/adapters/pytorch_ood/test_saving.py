"""A fitted detector goes into a model folder and comes back with the same scores, bit for bit."""

import json

import pytest
import timm
import torch
from pytorch_ood.api import FeatureMapsDetector, FeaturesDetector, LogitsDetector
from safetensors.torch import load_file, save_file

from isomax_adapters.pytorch_ood import (
    NAMES,
    Parts,
    Saved,
    detectors_for,
    digests_of_weights,
    load_detector,
    read_detector,
    save_detector,
)
from isomax_adapters.timm import ModelFolderError, attach, save_model

KINDS = {
    LogitsDetector: "logits",
    FeaturesDetector: "features",
    FeatureMapsDetector: "feature_maps",
}


def kind_of(detector):
    return next((kind for base, kind in KINDS.items() if isinstance(detector, base)), None)


@pytest.fixture(scope="module")
def made():
    """A model that tells its classes, and what it gives for some images of each."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    patterns = 3 * torch.randn(4, 3, 32, 32)
    images = patterns[torch.arange(240) % 4] + torch.randn(240, 3, 32, 32)
    parts = Parts(model)
    with torch.no_grad():
        features = parts.encode(images)
        means = torch.stack([features[i::4].mean(dim=0) for i in range(4)])
        away = means - means.mean(dim=0)
        sharp = 1 / away.square().sum(dim=1).mean()
        model.fc.weight.copy_(sharp * away)  # the nearest mean
        model.fc.bias.copy_(
            -sharp * ((means.square().sum(dim=1) - means.mean(0).square().sum()) / 2)
        )
        logits, maps = parts.classify(features), parts.feature_maps(images)
    assert len(logits.argmax(dim=1).unique()) == 4
    return model, {"logits": logits, "features": features, "feature_maps": maps}


WRITTEN = [
    name
    for name, detector in detectors_for(timm.create_model("test_resnet", num_classes=4)).items()
    if kind_of(detector)
]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_detector_of_outputs_comes_back(name, made, tmp_path):
    model, outputs = made
    detector = detectors_for(model, [name])[name]
    given = outputs[kind_of(detector)]
    if detector.requires_fit:
        labels = outputs["logits"].argmax(dim=1)
        getattr(detector, f"fit_{kind_of(detector)}")(given, labels)
    folder = save_model(model, tmp_path / "model")
    saved = Saved(name, {}, digests_of_weights(model).whole, {"k": 3}, 240, "abc")
    save_detector(detector, saved, folder)
    again = load_detector(folder)
    assert type(again) is type(detector)
    predict = f"predict_{kind_of(detector)}"
    with torch.no_grad():
        before, after = getattr(detector, predict)(given), getattr(again, predict)(given)
    assert before.dtype == after.dtype
    assert torch.equal(before, after)
    found = read_detector(folder)
    assert (found.name, found.fit_images, found.data, found.hyperparameters) == (
        name, 240, "abc", {"k": 3},
    )  # fmt: skip
    files = {path.suffix for path in folder.iterdir()}
    assert files <= {".json", ".safetensors"}  # nothing pickled


@pytest.mark.parametrize("name", ["ODIN", "GradNorm", "GradUncertainty", "MahalanobisODIN"])
def test_detectors_that_take_gradients_come_back(name, made, tmp_path):
    model, outputs = made
    detector = detectors_for(model, [name])[name]
    if detector.requires_fit:
        detector.fit_features(outputs["features"], outputs["logits"].argmax(dim=1))
    folder = save_model(model, tmp_path / "model")
    save_detector(detector, Saved(name, {}, digests_of_weights(model).whole), folder)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(load_detector(folder).predict(images), detector.predict(images))


def test_there_are_many():
    assert len(WRITTEN) > 30
    assert set(WRITTEN) <= set(NAMES)


def fitted(model, outputs, folder, name="ViM"):
    detector = detectors_for(model, [name])[name]
    detector.fit_features(outputs["features"], outputs["logits"].argmax(dim=1))
    save_model(model, folder)
    save_detector(detector, Saved(name, {}, digests_of_weights(model).whole), folder)
    return detector


def test_a_distance_head_has_its_scores(made, tmp_path):
    torch.manual_seed(0)
    model = attach(timm.create_model("test_resnet", num_classes=4), "isomax+").eval()
    folder = save_model(model, tmp_path / "model")
    detector = detectors_for(model, ["MinimumDistanceScore"])["MinimumDistanceScore"]
    save_detector(
        detector, Saved("MinimumDistanceScore", {}, digests_of_weights(model).whole), folder
    )
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(load_detector(folder).predict(x), detector.predict(x))


def test_a_detector_of_another_models_weights_is_refused(made, tmp_path):
    model, outputs = made
    folder = tmp_path / "model"
    fitted(model, outputs, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="was fitted on a model with the digest"):
        load_detector(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "detector.json").unlink(), "no detector was fitted for it"),
        (lambda f: (f / "detector.json").write_text("{"), "is damaged"),
        (lambda f: (f / "detector.json").write_text('{"a": 1}'), "is damaged"),
        (lambda f: (f / "detector.safetensors").unlink(), "is damaged"),
        (lambda f: (f / "detector.safetensors").write_bytes(b"\x80\x04."), "is damaged"),
    ],
)
def test_what_is_damaged_is_one_line(damage, message, made, tmp_path):
    model, outputs = made
    fitted(model, outputs, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=message):
        load_detector(tmp_path / "model")


def test_an_unknown_name_is_named(made, tmp_path):
    model, outputs = made
    fitted(model, outputs, tmp_path / "model")
    path = tmp_path / "model/detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "os.system"}))
    with pytest.raises(ModelFolderError, match=r"unknown detector os\.system"):
        load_detector(tmp_path / "model")
