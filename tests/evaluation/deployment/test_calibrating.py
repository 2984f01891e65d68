"""A classifier that has never seen isomax gets a detector and a threshold."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from isomax_adapters.onnx import export
from isomax_adapters.onnx.scorers import obstacle_to_export, why_too_large
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import Parts, load_detector, read_detector
from isomax_adapters.runtime.decoding import RGB, open_image
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration, load_model, save_model
from isomax_evaluation import train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.deployment.calibrating import calibrate
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from ...image_folders import make_folder

SHORT = replace(RECIPES["digits"], epochs=2, batch_size=16)
CLASSES = ("ash", "birch")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set") / "set", CLASSES, 60)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "out"
    train(
        str(root),
        output,
        model="test_resnet",
        loss="softmax",
        recipe=SHORT,
        alpha=0.2,
        preprocessing=Preprocessing(image_size=32),
        reading=Reading(workers=0),
    )
    return output


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A checkpoint that was made elsewhere."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("foreign") / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), path)
    return f"test_resnet@{path}"


def calibrated(source, root, output, detector=None, **change):
    given = {"alpha": 0.2, "image_size": 32, "reading": Reading(workers=0)} | change
    return calibrate(str(source), str(root), output, detector, **given)


@pytest.mark.parametrize("detector", ["ViM", "EnergyBased", "isomax+", "ReAct-maps"])
def test_the_threshold_is_of_images_that_neither_has_seen(detector, trained, root, tmp_path):
    folder = calibrated(trained, root, tmp_path / "model", detector)
    calibration, saved = load_calibration(folder), read_detector(folder)
    splits = pd.read_csv(trained / "splits.csv")
    held = splits[splits["split"] == "calibration"]["path"]
    assert calibration.guarantee == "established"
    assert calibration.samples == len(held)
    kept = {"scores", "logits"} | ({"features"} if detector in ("ViM", "isomax+") else set())
    assert set(calibration.outputs) == kept
    if saved.fit_images:
        assert saved.fit_images == (splits["split"] == "train").sum()
    model = load_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = torch.stack([transform(RGB(open_image(path))) for path in held])
    scores = load_detector(folder).predict(pixels).double().sort().values
    torch.testing.assert_close(
        scores, torch.tensor(calibration.scores).double(), atol=1e-4, rtol=1e-4
    )
    assert (scores <= calibration.threshold + 1e-4).double().mean() >= 0.8


def test_without_a_name_the_score_is_that_of_the_heads_paper(trained, root, tmp_path):
    folder = calibrated(trained, root, tmp_path / "model")
    assert load_calibration(folder).score == "energy_score"
    assert read_detector(folder) is None
    before = load_calibration(trained / "model")
    assert load_calibration(folder).threshold == pytest.approx(before.threshold, abs=1e-5)


def test_of_a_model_from_elsewhere_nobody_can_know(foreign, root, tmp_path, capfd):
    folder = calibrated(foreign, root, tmp_path / "model", "Mahalanobis")
    assert load_calibration(folder).guarantee == "unknown"
    assert "the guarantee is unknown. Give images that it has not seen" in capfd.readouterr().err
    other = make_folder(tmp_path / "other", CLASSES, 20, seed=1)
    folder = calibrated(foreign, root, tmp_path / "second", "Mahalanobis", calibration=str(other))
    found = load_calibration(folder)
    assert (found.guarantee, found.samples) == ("established", 40)


def test_val_beside_test_calibrates(foreign, root, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        make_folder(tmp_path / "set" / split, CLASSES, 20 + number, seed=number)
    folder = calibrated(foreign, tmp_path / "set", tmp_path / "model", "MahalanobisPP")
    found = load_calibration(folder)
    assert (found.guarantee, found.samples) == ("established", 42)
    assert json.loads((folder / "detector.json").read_text())["fit_images"] == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": "nonsense"}, "nonsense; choose from isomax, .*; `isomax list detectors`"),
        ({"detector": "EntropicScore"}, "EntropicScore cannot work on this model"),
        ({"alpha": 0.001}, "the threshold takes 999"),
        ({"alpha": 5}, "alpha is 5; expected a fraction"),
        ({"source": "test_vit", "detector": "ReAct-maps"}, "no pretrained weights of test_vit"),
        ({"source": "nowhere"}, "the model: "),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    change, message, trained, root, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"source": trained} | change
    with pytest.raises(InputError, match=message):
        calibrated(given.pop("source"), root, tmp_path / "model", **given)
    assert not (tmp_path / "model").exists()


def test_a_place_that_is_taken_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.txt").touch()
    for place in (tmp_path / "photos", tmp_path / "photos/a.txt"):
        with pytest.raises(InputError, match="exists and is not a model folder"):
            calibrated("nowhere", "nowhere", place)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "a.txt"]


@pytest.mark.parametrize("few", [True, False])
def test_fewer_images_than_vim_has_dimensions_are_warned_of(few, trained, root, tmp_path, capfd):
    assert load_model(trained / "model").num_features == 2 * 48
    calibrated(trained, root, tmp_path / "model", "ViM", fit_images=24 if few else 25)
    assert ("lie in its principal subspace" in capfd.readouterr().err) == few


def test_classes_that_the_model_lacks_are_named(trained, tmp_path):
    other = make_folder(tmp_path / "other", ("oak", "pine"), 30)
    with pytest.raises(InputError, match="oak"):
        calibrated(trained, other, tmp_path / "model", "ViM")


def test_the_command_says_what_came_out(isomax, trained, root, tmp_path):
    run = isomax(
        "calibrate", trained, "--id", root, "--output", tmp_path / "model", "--detector", "ViM",
        "--alpha", 0.2, "--workers", 0,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "threshold: ViM " in run.stdout
    trained_head = ["--detector", "isomax+", "--set", "epochs=3"]
    given = ["calibrate", trained, "--id", root, "--output", tmp_path / "head", "--alpha", 0.2]
    other = isomax(*given, "--workers", 0, *trained_head)
    assert other.returncode == 0, other.stderr
    saved = read_detector(tmp_path / "head")
    assert saved.hyperparameters["epochs"] == 3
    for wrong, message in (("epochs", "expected NAME=NUMBER"), ("k=3", "has no hyperparameter k")):
        other = isomax(*given, "--workers", 0, "--detector", "isomax+", "--set", wrong)
        assert other.returncode == 2
        assert message in other.stderr.splitlines()[-1]
    assert "false alarms: at most 0.2 of fresh images" in run.stdout


@pytest.mark.parametrize(
    ("detector", "bank"),
    [("ViM", None), ("KNN", 60), ("ReAct-maps", None), ("KLMatching", None), ("dismax", None)],
)
def test_the_file_gives_the_detectors_scores_and_verdict(detector, bank, trained, root, tmp_path):
    folder = calibrated(trained, root, tmp_path / "model", detector, bank=bank)
    scorer = Scorer(export(folder, tmp_path / "m.onnx"))
    files = sorted(map(str, root.rglob("*.jpg")))[::5]
    found = scorer.score(files)
    model, calibration = load_model(folder), load_calibration(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = torch.stack([transform(RGB(open_image(path))) for path in files])
    expected = load_detector(folder).predict(pixels).detach().double()
    scores = torch.tensor([result.score for result in found]).double()
    spread = float(expected.std())
    torch.testing.assert_close(scores, expected, rtol=2e-3, atol=0.05 * spread)  # pixels round
    assert scorer.metadata["score"] == calibration.score
    known, tolerance = (scorer.metadata[name] for name in ("scores", "tolerance"))
    for result in found:
        assert result.is_ood == (result.p_value <= calibration.alpha)
        at_least = sum(score >= result.score - tolerance for score in known)
        assert result.p_value == pytest.approx((1 + at_least) / (1 + len(known)), abs=1e-6)
    if bank:
        assert len(load_detector(folder).knn._fit_X) == bank
    tensors = [folder / name for name in ("model.safetensors", "detector.safetensors")]
    least = sum(path.stat().st_size for path in tensors)
    assert (tmp_path / "m.onnx").stat().st_size <= least + 1_000_000


def test_what_is_too_large_for_a_file_is_said_before_it_is_fitted():
    parts = Parts(timm.create_model("resnet18", num_classes=1000))
    reason = obstacle_to_export("GMM", parts, (3, 64, 64))
    assert "it holds 2.1 GB beside 0.05 of the network, and a file has at most 2" in reason
    assert reason.endswith("MahalanobisPP is smaller")
    assert obstacle_to_export("KNN", parts, (3, 64, 64)) is None
    assert "it takes a singular value" in obstacle_to_export("RankFeat", parts, (3, 64, 64))
    assert "compare with fewer images (--bank)" in why_too_large("KNN", 3 * 10**9, 10**6)
    assert why_too_large("KNN", 10**9, 10**6) is None


def test_reduced_files_keep_the_detector_of_features(trained, root, tmp_path):
    folder = calibrated(trained, root, tmp_path / "model", "ViM")
    whole = Scorer(export(folder, tmp_path / "whole.onnx"))
    half = Scorer(export(folder, tmp_path / "half.onnx", "fp16"))
    files = sorted(map(str, root.rglob("*.jpg")))[::9]
    scores = [[result.score for result in one.score(files)] for one in (whole, half)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1, abs=0.5)
    assert half.metadata["guarantee"] == "not established"


@pytest.mark.parametrize(
    ("detector", "precision", "message"),
    [
        ("GradNorm", "fp32", "EnergyBased is nearest"),
        ("ReAct-maps", "fp16", "calibrate with ReAct, of pooled features"),
    ],
)
def test_what_no_file_can_hold_says_what_can(detector, precision, message, trained, root, tmp_path):
    folder = calibrated(trained, root, tmp_path / "model", detector)
    with pytest.raises(ExportError, match=message):
        export(folder, tmp_path / "m.onnx", precision)
    assert not (tmp_path / "m.onnx").exists()


def test_a_calibration_folder_is_matched_by_name(root, tmp_path):
    """Where text order and natural order differ, and a folder's order is not the model's."""
    names = ("2", "10", "1")
    make_folder(tmp_path / "set", names, 30)
    make_folder(tmp_path / "fresh", names, 8, seed=1)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    source = save_model(model, tmp_path / "source", ["10", "1", "2"])
    calibrated(source, tmp_path / "set", tmp_path / "m", calibration=str(tmp_path / "fresh"))
    found = load_calibration(tmp_path / "m")
    assert (found.guarantee, found.samples) == ("established", 24)
    weights = load_model(tmp_path / "m").get_classifier().weight
    assert load_model(tmp_path / "m").pretrained_cfg["label_names"] == ["1", "2", "10"]
    assert torch.equal(weights, model.get_classifier().weight[[1, 2, 0]])
