"""Comparisons that start from a pretrained backbone, on the page of results."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from evaluation.benchmarks.claims.fine_tuning import ALL, HEAD, NOTHING, sections
from evaluation.benchmarks.claims.gathering import gather
from evaluation.benchmarks.claims.results_page import spread, write_page
from isomax_evaluation import compare
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source

HERE = Path(__file__).parents[4] / "evaluation/benchmarks"
DETECTORS = ("MaxSoftmax", "EnergyBased", "EntropicScore", "MinimumDistanceScore")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    save_file(network.state_dict(), folder / "weights.safetensors")
    made = []
    for epochs, first in ((0, 0), (0, 3), (1, 0)):
        recipe = replace(
            RECIPES["digits"], epochs=epochs, head_first=first, head_start="means", keep="best"
        )
        made.append(
            compare(
                model=Source("test_resnet", weights=str(folder / "weights.safetensors")),
                losses=["softmax", "isomax+"],
                seeds=1,
                detectors=DETECTORS,
                images_per_class=40,
                recipe=recipe,
                alpha=0.1,
                test_images=50,
                output=folder / f"{epochs}-{first}",
            )
        )
    return made


def test_each_stage_is_a_part_of_the_page(stages, tmp_path):
    shutil.copytree(HERE / "results", tmp_path / "results")
    gather([stage.output for stage in stages], tmp_path / "results")
    text = write_page(tmp_path / "results", tmp_path / "RESULTS.md").read_text()
    for stage, name in zip(stages, (NOTHING, HEAD, ALL), strict=True):
        rows = stage.results.query("loss == 'isomax+' and detector == 'MinimumDistanceScore'")
        start = f"| {name} | isomax+ | MinimumDistanceScore |"
        (line,) = [line for line in text.splitlines() if line.startswith(start)]
        assert f"| {spread(rows.drop_duplicates('seed')['accuracy'])} |" in line
        for auroc in rows["AUROC"]:
            assert f"{100 * auroc:.1f} [" in line
    (line,) = [row for row in text.splitlines() if row.startswith(f"| {ALL} | softmax |")]
    summary = json.loads((stages[2].output / "runs/softmax-seed0/summary.json").read_text())
    assert f"| 1 | {int(summary['kept'].startswith('epoch'))} of 1 |" in line
    assert "**Does accuracy drop?** As the recipe trains each" in text
    assert "--weights FILE --image-size 32 --recipe digits --epochs 0 --head-first 3" in text
    assert "--images-per-class 40" in text
    assert "--test-images 50" in text
    # the tables of the other comparisons are as they were
    for name in ("detection.csv", "setting.json"):
        assert (tmp_path / "results" / name).read_bytes() == (HERE / "results" / name).read_bytes()


def test_one_backbone_runs_once_for_all_heads(stages):
    """Two heads that are trained alone: one set of features, and logits of each."""
    frozen = stages[0]
    kept = pd.DataFrame(
        [pd.read_json(path, typ="series") for path in frozen.output.glob("outputs/*/about.json")]
    )
    assert kept["backbone"].nunique() == 1
    assert kept["weights"].nunique() == 4  # two heads, as they begin and as they end


def test_what_is_said_follows_from_the_numbers():
    row = {"id": "a", "classes": 2, "per_class": 5, "model": "m", "size": 32, "stage": HEAD}
    row |= {"epochs": 0, "head_epochs": 20, "seed": 0, "low": 0.1, "high": 0.9, "seconds": 1.0}
    row |= {"kept": "", "rate": 1.0}
    values = [
        ("softmax", "MaxSoftmax", 0.9, 0.7),
        ("softmax", "EnergyBased", 0.9, 0.8),
        ("isomax+", "MinimumDistanceScore", 0.87, 0.75),
    ]
    table = pd.DataFrame(
        [
            row
            | {"loss": loss, "detector": detector, "accuracy": accuracy, "AUROC": auroc}
            | {"ood": ood, "near": ood == "near"}
            for loss, detector, accuracy, auroc in values
            for ood in ("near", "far")
        ]
    )
    (part,) = sections(table)
    (accuracy,) = part["accuracy"]
    assert accuracy["gap"] == accuracy["shipped"] == pytest.approx(-3)
    assert not accuracy["holds"]
    (near,) = part["near"]
    assert near["gap"] == pytest.approx(-5)
    assert part["best"][0]["what"] == f"EnergyBased on softmax ({HEAD})"
    assert part["best"][0]["own"] == pytest.approx(75)


def test_other_learning_rates_stand_apart():
    row = {"id": "a", "classes": 2, "per_class": 5, "model": "m", "size": 32, "stage": ALL}
    row |= {"epochs": 4, "head_epochs": 0, "low": 0.1, "high": 0.9, "seconds": 1.0, "near": True}
    row |= {"detector": "EnergyBased", "ood": "b", "AUROC": 0.7, "loss": "softmax"}
    models = [(1, 0, 0.8, "epoch 4"), (1, 1, 0.9, "epoch 3"), (10, 0, 0.7, "the head alone")]
    table = pd.DataFrame(
        [row | dict(zip(("rate", "seed", "accuracy", "kept"), one, strict=True)) for one in models]
    )
    # a longer training of the head is another row's
    first = table.iloc[[0]].assign(head_epochs=20, accuracy=0.6)
    (part,) = sections(pd.concat([first, table]))
    assert part["rates"] == [
        {
            "rate": 10,
            "loss": "softmax",
            "epochs": "0 + 4",
            "seeds": 1,
            "kept": "0 of 1",
            "accuracy": [0.7],
            "usual": [0.8],
        }
    ]
