"""What makes a model no good is said, of given models and of exported ones too."""

import torch

from isomax.calibration import Calibration
from isomax_adapters.timm import create_model, save_model
from isomax_evaluation import compare
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.deployment.calibrating import calibrate

from ...image_folders import make_folder


def useless(folder):
    """A model whose distances are all alike, with the threshold that follows."""
    torch.manual_seed(0)
    model = create_model("isomaxplus_test_resnet", num_classes=2).eval()
    with torch.no_grad():
        model.fc.distance_scale.fill_(1e-9)
    logits = torch.full((40, 2), -1e-9, dtype=torch.float64)
    calibration = Calibration.fit(logits, torch.arange(40) % 2, "entropic_score", 0.2)
    return save_model(model, folder, ["ash", "birch"], calibration=calibration)


def test_a_given_model_that_has_learnt_nothing_is_doubted(tmp_path, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 20)
    compare(
        id=str(root),
        ood={"noise": "uniform-noise"},
        models={"mine": useless(tmp_path / "model")},
        detectors=["EntropicScore"],
        test_images=20,
        alpha=0.2,
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=32),
        reading=Reading(workers=0),
    )
    said = capfd.readouterr().err
    assert "mine: " in said
    for part in ("no better than by naming the largest class", "the distance scale is 1e-09"):
        assert part in said


def test_calibrating_a_model_that_has_learnt_nothing_warns(tmp_path, capfd):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 40)
    source = str(useless(tmp_path / "model"))
    calibrate(
        source, str(root), tmp_path / "out", alpha=0.2, image_size=32, reading=Reading(workers=0)
    )
    said = capfd.readouterr().err
    assert "warning: the distance scale is 1e-09" in said
    assert "no better than by naming the largest class" in said


def test_exporting_a_model_that_calls_nothing_unknown_warns(isomax, tmp_path):
    run = isomax("export", useless(tmp_path / "model"), tmp_path / "model.onnx")
    assert run.returncode == 0, run.stderr
    assert "that no image will be called unknown" in run.stderr
    assert "warning: the distance scale is 1e-09" in run.stderr
