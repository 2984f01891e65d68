"""The model card says what the run's files say."""

import json
import re
from dataclasses import replace

import pytest
import timm
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from isomax_evaluation import compare, train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.training.card import write_card
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source

from ...image_folders import make_folder

SHORT = replace(RECIPES["digits"], epochs=1, batch_size=16)


def trained(root, output):
    return train(
        str(root),
        output,
        model="test_resnet",
        recipe=SHORT,
        alpha=0.2,
        preprocessing=Preprocessing(image_size=32),
        reading=Reading(workers=0),
    )


def test_a_model_folder_has_a_card_that_the_hub_can_read(tmp_path):
    root = make_folder(tmp_path / "set", ("ash | tree", "b_[old]"), 40)
    folder = trained(root, tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    calibration = json.loads((folder / "calibration.json").read_text())
    assert card.data.library_name == "timm"
    assert card.data.license is None
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(summary["test_accuracy"], abs=1e-4)
    assert f"{calibration['threshold']:.6g}" in card.text
    assert f"| accuracy, percent | {100 * summary['test_accuracy']:.1f} |" in card.text
    assert r"| ash \| tree | 8 |" in card.text
    assert r"| b\_\[old\] | 8 |" in card.text
    for part in json.loads((tmp_path / "out/provenance.json").read_text())["datasets"]:
        assert f"| {part['size']} | `{part['digest']}` |" in card.text
    assert "Started from random weights" in card.text
    assert re.search("Recipe: epochs 1, .*augment pad-crop", card.text)
    guide = (tmp_path / "out/README.md").read_text()
    assert all(path.name in guide for path in (tmp_path / "out").iterdir())
    trained(root, tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == guide
    assert "Unknown images" not in card.text


def test_a_card_of_a_head_alone_names_no_augmentation(tmp_path):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 40)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    folder = train(
        str(root),
        tmp_path / "out",
        model=Source("test_resnet", weights=str(weights)),
        alpha=0.2,
        recipe=replace(RECIPES["finetune"], epochs=0),
        preprocessing=Preprocessing(image_size=32),
        reading=Reading(workers=0),
    )
    text = (folder / "README.md").read_text()
    assert "Recipe: epochs 0, augment none" in text
    assert "hflip" not in text


def test_a_card_that_a_kill_has_prevented_is_written_by_the_next_call(tmp_path):
    root = make_folder(tmp_path / "set", ("ash", "birch"), 40)
    path = trained(root, tmp_path / "out") / "README.md"
    before = path.read_text()
    path.unlink()
    trained(root, tmp_path / "out")
    assert path.read_text() == before


def test_a_comparison_adds_what_the_model_makes_of_unknown_images(tmp_path):
    done = compare(
        losses=["isomax"], seeds=1, detectors=["EntropicScore", "MaxSoftmax"], images_per_class=40,
        recipe=replace(RECIPES["digits"], epochs=1), alpha=0.1, output=tmp_path, test_images=50,
    )  # fmt: skip
    text = (tmp_path / "runs/isomax-seed0/model/README.md").read_text()
    for row in done.results.to_dict("records"):
        assert (
            f"| {row['ood']} | {row['detector']} | {100 * row['AUROC']:.1f} | "
            f"{100 * row['FPR95TPR']:.1f} |"
        ) in text
    assert write_card(tmp_path / "runs/isomax-seed0").read_text() == text
