"""The table's winner as a file."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import load_detector
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import load_calibration
from isomax_evaluation import compare, data
from isomax_evaluation.comparison.columns import FILES
from isomax_evaluation.comparison.deploying import choose
from isomax_evaluation.data.settings import Preprocessing
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.recipes import RECIPES

from .scores import read_scores

SHORT = replace(RECIPES["digits"], epochs=1)


def table(**auroc):
    """One row per OOD set; MODEL_DETECTOR=(AUROC of each)."""
    rows = [
        {"loss": key.split("_")[0], "seed": 0, "detector": key.split("_")[1], "ood": i, "AUROC": v}
        for key, values in auroc.items()
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def bounds(results, below=0.1):
    return results.assign(**{"AUROC low": results["AUROC"] - below})


def rows(*keys, **obstacles):
    parts = [key.split("_") for key in (*keys, *obstacles)]
    found = [(*part, obstacles.get("_".join(part), ""), "") for part in parts]
    return pd.DataFrame(found, columns=["loss", "detector", "obstacle", "command"])


def test_the_best_row_is_chosen_among_those_that_a_file_can_hold():
    results = table(a_ViM=(0.9, 0.7), a_ODIN=(0.99, 0.99), b_KNN=(0.8, 0.85), b_GEN=(1.0, None))
    can = rows("a_ViM", "b_KNN", "b_GEN", a_ODIN="gradients")
    none = results.iloc[:0]
    lows = bounds(results)
    assert choose(results, lows, none, can, None) == ("b", "KNN", "chosen on the test sets")
    # on the images that hyperparameters were chosen by, if there are some
    tuning = bounds(table(a_ViM=(0.9,), b_KNN=(0.2,), a_ODIN=(1.0,)))
    assert choose(results, lows, tuning, can, "noise") == ("a", "ViM", "chosen by AUROC on noise")
    reason = choose(results, lows, none, rows(a_ODIN="gradients"), None)
    assert reason == "no row of this table can be a file"


def test_what_may_be_chance_is_not_chosen():
    results, none = table(a_ViM=(0.62, 0.5), b_KNN=(0.4, 0.3)), table()
    can = rows("a_ViM", "b_KNN")
    # on the mean of the sets, whose interval is no wider than the mean of theirs
    assert choose(results, bounds(results, 0.05), none, can, None)[:2] == ("a", "ViM")
    reason = choose(results, bounds(results, 0.07), none, can, None)
    assert "the best, ViM on a, has an AUROC of 56.0%" in reason
    assert "reaches down to 49.0%" in reason
    assert "above chance on noise" in choose(results, results, bounds(results, 0.07), can, "noise")


def test_the_chosen_row_is_a_file_with_the_tables_scores(compared):
    about = json.loads((compared.output / "chosen.json").read_text())
    assert (about["model"], about["detector"]) == (compared.chosen.model, compared.chosen.detector)
    assert compared.chosen.by == "chosen on the test sets"
    assert not compared.chosen.error
    mean = compared.results.groupby(["loss", "detector"])["AUROC"].mean()
    can = compared.deployable.query("obstacle == ''")
    can = zip(can["loss"], can["detector"], strict=True)
    assert (about["model"], about["detector"]) == mean[list(can)].idxmax()
    run = compared.output / f"runs/{about['model']}-seed{about['seed']}"
    others = [
        json.loads((compared.output / f"runs/{about['model']}-seed{s}/summary.json").read_text())
        for s in (0, 1)
    ]
    best = max(other["val_accuracy"] for other in others)
    assert json.loads((run / "summary.json").read_text())["val_accuracy"] == best
    scorer = Scorer(compared.output / "chosen.onnx")
    assert scorer.metadata["score"] == about["detector"]
    assert scorer.metadata["guarantee"] == "established"
    held = pd.read_csv(run / "splits.csv").query("split == 'calibration'")
    assert scorer.metadata["samples"] == len(held)
    test = data.open_splits("digits").test
    found = scorer.score([np.asarray(test.image(i)) for i in range(20)])
    wanted = read_scores(run, "digits")[about["detector"]][:20]
    assert [r.score for r in found] == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-3)


def test_samples_of_each_set_are_there_to_try_the_file_on(compared):
    found = {
        folder.name: sorted(path.name for path in folder.iterdir())
        for folder in (compared.output / "samples").iterdir()
    }
    assert {name: len(files) for name, files in found.items()} == dict.fromkeys(
        ("digits", "digits-held-out", "uniform-noise"), 6
    )
    scorer, test = Scorer(compared.output / "chosen.onnx"), data.open_splits("digits").test
    for name in found["digits"]:
        label, place = name.removesuffix(".png").split("-")
        assert test.class_of(int(place)) == label
        (one,) = scorer.score(compared.output / "samples/digits" / name)
        (same,) = scorer.score(np.asarray(test.image(int(place))))
        assert one.score == pytest.approx(same.score, rel=1e-5)


def test_the_report_marks_what_can_be_a_file_and_shows_the_command(compared):
    html = (compared.output / "report.html").read_text()
    assert "chosen on the test sets" in html
    can = compared.deployable.set_index(["loss", "detector"])
    assert can.loc[("softmax", "ODIN"), "obstacle"].startswith("ODIN cannot be exported")
    command = can.loc[("softmax", "EnergyBased"), "command"]
    assert command.startswith("isomax calibrate ")
    assert "isomax export softmax-EnergyBased softmax-EnergyBased.onnx" in command
    assert html.count(">ONNX</td>") == 2 * (can["obstacle"] == "").sum()


def test_the_command_of_a_row_has_what_the_comparison_was_asked_for(compared, tmp_path):
    done = compare(
        models={"given": compared.output / "runs/softmax-seed0"},
        detectors=["MaxLogit"],
        fit_images=20,
        test_images=40,
        output=tmp_path / "out",
        preprocessing=Preprocessing(image_size=(40, 48)),
    )
    assert " --image-size 40,48 --fit-images 20 " in done.deployable.command.item()


def test_the_command_of_a_row_makes_the_same_file(compared, isomax, tmp_path):
    command = compared.deployable.query("loss == 'softmax' and detector == 'Mahalanobis'").command
    for line in command.item().splitlines():
        run = isomax(*line.split()[1:], cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    folder = compared.output / "runs/softmax-seed0"
    wanted = read_scores(folder, "digits")["Mahalanobis"][:9]
    test = data.open_splits("digits").test
    scorer = Scorer(tmp_path / "softmax-Mahalanobis.onnx")
    found = scorer.score([np.asarray(test.image(i)) for i in range(9)])
    assert [r.score for r in found] == pytest.approx(wanted.tolist(), rel=1e-3)


def test_a_row_that_is_asked_for_becomes_the_file(tmp_path):
    given = {"losses": ["isomax"], "seeds": 1, "recipe": SHORT, "detectors": ["KNN", "MaxLogit"]}
    first = compare(output=tmp_path / "out", **given, export="isomax/MaxLogit")
    assert first.chosen.by == "asked for"
    assert Scorer(tmp_path / "out/chosen.onnx").metadata["score"] == "MaxLogit"
    # another row of what is there: nothing is trained or scored again
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").iterdir()}
    compare(output=tmp_path / "out", **given, export="isomax/KNN")
    assert Scorer(tmp_path / "out/chosen.onnx").metadata["score"] == "KNN"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").iterdir()} == kept
    for wrong, message in (
        ("KNN", "expected MODEL/DETECTOR"),
        ("softmax/KNN", "has no model softmax; it has isomax"),
        ("isomax/ViM", "has no detector ViM; it has KNN, MaxLogit"),
    ):
        with pytest.raises(InputError, match=message):
            compare(output=tmp_path / "out", **given, export=wrong)
    with pytest.raises(InputError, match="isomax/ODIN cannot be a file: ODIN cannot be exported"):
        compare(output=tmp_path / "new", **(given | {"detectors": ["ODIN"]}), export="isomax/ODIN")
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_exported_costs_no_table(tmp_path, monkeypatch, capsys):
    def refuse(*given):
        raise ExportError("the file disagrees with the model")

    monkeypatch.setattr("isomax_evaluation.comparison.deploying.export", refuse)
    done = compare(
        losses=["isomax"],
        seeds=1,
        recipe=SHORT,
        detectors=["MaxLogit"],
        output=tmp_path / "out",
        export="isomax/MaxLogit",
    )
    assert "the file disagrees" in done.chosen.error
    assert (tmp_path / "out/results.csv").is_file()
    assert "the file disagrees" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/chosen.onnx").exists()
    assert done.onnx is None
    said = capsys.readouterr().err
    assert "no model.onnx of isomax-seed0: ExportError: the file disagrees" in said, said


def test_the_tuning_set_chooses_where_there_is_one(tmp_path):
    done = compare(
        losses=["softmax"], seeds=1, recipe=SHORT, detectors=["KNN", "MaxLogit"],
        tune="gaussian-noise", test_images=60, output=tmp_path / "out",
    )  # fmt: skip
    assert done.chosen.by == "chosen by AUROC on gaussian-noise"
    folder = tmp_path / "out/runs/softmax-seed0"
    tuning = pd.read_csv(folder / "tuning.csv")
    assert list(tuning.columns) == list(FILES["runs/MODEL-seedN/tuning.csv"])
    assert tuning.loc[tuning["AUROC"].idxmax(), "detector"] == done.chosen.detector
    values = json.loads((folder / "hyperparameters.json").read_text())
    if done.chosen.detector == "KNN":
        assert load_detector(tmp_path / "out/chosen").k == values["KNN"]["k"]


def test_a_given_model_has_the_images_that_its_training_held_out(compared, tmp_path):
    run = compared.output / "runs/softmax-seed0"
    compare(models={"mine": run}, detectors=["Mahalanobis"], output=tmp_path / "out")
    found = load_calibration(tmp_path / "out/chosen")
    splits = pd.read_csv(run / "splits.csv")
    assert found.samples == (splits["split"] == "calibration").sum()
    about = json.loads((tmp_path / "out/chosen/detector.json").read_text())
    training = len(data.open_splits("digits").train)
    assert about["fit_images"] == training - found.samples


def test_finished_tensors_make_no_file_and_say_why_and_costs_can_be_left_out(tmp_path):
    images = torch.randn(40, 3, 32, 32)
    train, test = (TensorDataset(torch.randn(40, 3, 32, 32), torch.arange(40) % 2) for _ in "ab")
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network.fc = torch.nn.Linear(3, 2)
    from isomax_adapters.pytorch_ood import Parts

    done = compare(
        models={"own": Parts(network, classifier="fc")}, id={"mine": (train, test)},
        ood={"far": TensorDataset(images, torch.full((40,), -1))}, detectors=["MaxLogit"],
        output=tmp_path / "out", costs=False,
    )  # fmt: skip
    assert done.costs.empty
    assert list(pd.read_csv(tmp_path / "out/costs.csv")) == list(FILES["costs.csv"])
    assert done.chosen.error == "no row of this table can be a file"
    assert json.loads((tmp_path / "out/chosen.json").read_text())["error"] == done.chosen.error
    assert "finished tensors" in done.deployable["obstacle"].item()
    assert done.chosen.error in (tmp_path / "out/report.html").read_text()
