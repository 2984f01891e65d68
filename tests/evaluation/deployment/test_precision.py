"""What a precision costs, in numbers that a comparison of the same model gives as well."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from isomax.calibration import Calibration
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import save_model
from isomax_evaluation import data, train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.deployment import precision
from isomax_evaluation.deployment.precision import measure
from isomax_evaluation.output.progress import Silent
from isomax_evaluation.training.recipes import RECIPES

from ...image_folders import make_folder


@pytest.fixture(scope="module")
def sets():
    known = data.open_images("digits")
    return known, [data.open_images("digits-held-out").as_ood()]


def test_a_file_is_measured_as_the_comparison_measured_its_model(compared, sets):
    known, unknown = sets
    path, done = compared.output / "model.onnx", []
    table = measure({"fp32": path, "again": path}, known, unknown, done.append)
    assert sum(done) == 2 * (len(known) + len(unknown[0]))
    expected = compared.results.query(
        "loss == 'isomax' and seed == 0 and ood == 'digits-held-out' and "
        "detector == 'EntropicScore'"
    ).iloc[0]
    first, second = table.iloc[0], table.iloc[1]
    assert first["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert first["AUROC/digits-held-out"] == pytest.approx(expected["AUROC"], abs=1e-3)
    assert first.drop("precision").equals(second.drop("precision"))
    assert first["same_labels"] == 1
    # what the fitted threshold rejects is at most alpha of these very images
    rejected = first["false_alarms"] <= first["alpha"]
    assert rejected == (first["threshold"] >= first["fitted_threshold"])
    few = measure({"fp32": path}, known.take(range(10)), [], done.append)  # alpha takes 19
    assert np.isnan(few["fitted_threshold"].iloc[0])


def test_export_prints_what_int8_costs(isomax, compared, tmp_path):
    run = isomax(
        "export", compared.output / "runs" / "isomax-seed0" / "model", tmp_path / "m.onnx",
        "--precision", "int8", "--id", "digits", "--ood", "uniform-noise", "--test-images", 120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in run.stdout.splitlines()]
    table = {row[1]: row[2:-1] for row in rows if len(row) == 10}
    assert set(table) == {"fp32", "int8"}
    assert float(table["int8"][0]) < 0.5 * float(table["fp32"][0])
    for column in (1, 3):  # accuracy, AUROC
        assert float(table["int8"][column]) == pytest.approx(float(table["fp32"][column]), abs=5)
    assert "verified" in run.stdout
    # what training held out judges and calibrates the file
    assert "guarantee" not in run.stderr
    splits = pd.read_csv(compared.output / "runs/isomax-seed0/splits.csv")
    metadata = Scorer(tmp_path / "m.onnx").metadata
    assert metadata["guarantee"] == "established"
    assert metadata["samples"] == (splits["split"] == "calibration").sum()
    own = Scorer(compared.output / "model.onnx").metadata
    assert metadata["scores"] != own["scores"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_each_image_that_training_held_out_has_one_purpose(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 60)
    recipe = replace(RECIPES["digits"], epochs=1)
    monkeypatch.chdir(tmp_path)
    folder = train(
        "set",
        tmp_path / "out",
        model="test_resnet",
        recipe=recipe,
        alpha=0.2,
        val_share=0.5,
        preprocessing=Preprocessing(image_size=32),
        reading=Reading(workers=0),
    )
    read = {}

    def exported(folder, path, precision, calibration, **unseen):
        if precision == "int8":
            read["train"] = set(calibration)
            read["validation"] = set(unseen["selection"].images)
            read["calibration"] = set(unseen["held_out"].images)

    monkeypatch.setattr(precision, "export", exported)
    monkeypatch.setattr(precision, "measure", lambda *given: None)
    for place, given in ((tmp_path, "./set"), (root, str(root)), (root, "../set")):
        monkeypatch.chdir(place)
        read.clear()
        precision.export_and_measure(
            folder,
            tmp_path / "m.onnx",
            "int8",
            given,
            [],
            Silent(),
            reading=Reading(workers=0),
        )
        splits = pd.read_csv(tmp_path / "out/splits.csv")
        for part, count in (("train", 48), ("validation", 24), ("calibration", 24)):
            files = set(splits[splits["split"] == part]["path"])
            assert {os.path.realpath(path) for path in read[part]} == files
            assert len(files) == count


def test_unseen_images_calibrate_and_judge_a_reduced_file(isomax, photos, tmp_path):
    model = tmp_path / "model"
    calibrated_model(model, ("ash", "birch", "cedar"))
    unseen = make_folder(tmp_path / "unseen", ("ash", "cedar"), 30, seed=1)
    arguments = ["export", model, tmp_path / "m.onnx", "--precision", "fp16", "--id", photos]
    run = isomax(*arguments, "--calibration", unseen)
    assert run.returncode == 0, run.stderr
    assert "guarantee" not in run.stderr
    metadata = Scorer(tmp_path / "m.onnx").metadata
    assert (metadata["samples"], metadata["guarantee"]) == (39, "established")
    for wrong, message in (
        (
            make_folder(tmp_path / "other", ("ash", "oak"), 20, seed=1),
            "has oak, not among the known classes",
        ),
        (photos, "of the calibration images of photos"),
        (make_folder(tmp_path / "few", ("ash", "birch"), 4, seed=1), "takes 19"),
    ):
        run = isomax(*arguments, "--calibration", wrong)
        assert run.returncode == 2
        assert message in run.stderr


def calibrated_model(folder, names):
    torch.manual_seed(0)
    model = timm.create_model("isomax_test_resnet", num_classes=len(names)).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)
    logits = -torch.rand(40, len(names))
    calibration = Calibration.fit(logits, logits.argmax(dim=1))
    return save_model(model, folder, names, {"input_size": (3, 32, 32)}, calibration)
