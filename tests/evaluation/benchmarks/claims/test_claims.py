"""The page of results is made of the tables, and of nothing else."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from evaluation.benchmarks.claims.gathering import gather
from evaluation.benchmarks.claims.results_page import spread, write_page
from isomax_evaluation.output.errors import InputError

HERE = Path(__file__).parents[4] / "evaluation/benchmarks"


@pytest.fixture(scope="module")
def gathered(compared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims") / "results"
    folder.mkdir()
    gather([compared.output], folder)
    shutil.copy(HERE / "results/paper.csv", folder)
    return folder


def test_the_page_shows_what_the_tables_hold(gathered, compared):
    text = write_page(gathered, gathered.parent / "RESULTS.md").read_text()
    own = compared.results.query("loss == 'isomax' and detector == 'EntropicScore'")
    for _, rows in own.groupby("ood"):
        assert spread(rows["AUROC"]) in text
    assert re.search(r"MahalanobisODIN \| [\d.]+ \| [\d.]+ \|", text)
    assert "ONNX Runtime | isomax | EntropicScore" in text
    assert "| 95.1 ± 1.0 | not measured |" in text
    assert not re.search(r"nan|Undefined|\{\{", text)


def test_another_number_in_a_table_is_another_number_on_the_page(gathered, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(gathered, folder)
    table = pd.read_csv(folder / "detection.csv")
    chosen = (table["loss"] == "isomax") & (table["detector"] == "EntropicScore")
    table.loc[chosen, "AUROC"] = 0.12345
    table.to_csv(folder / "detection.csv", index=False)
    assert "12.3 ± 0.0" in write_page(folder, tmp_path / "RESULTS.md").read_text()


def test_inference_of_isomax_is_one_forward_pass(gathered):
    inference = pd.read_csv(gathered / "inference.csv").set_index(["runtime", "detector"])
    assert (inference["cpu_seconds_per_1000"] > 0).all()
    assert inference.loc[("PyTorch", "MaxSoftmax"), "ratio"] == 1
    costs = pd.read_csv(gathered / "costs.csv").set_index(["loss", "detector"])
    assert tuple(costs.loc[("isomax", "EntropicScore"), ["forward", "backward"]]) == (1, 0)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no finished comparison"):
        gather([tmp_path], tmp_path)
    with pytest.raises(InputError, match="has no detection, intervals"):
        write_page(tmp_path, tmp_path / "RESULTS.md")


def test_the_page_in_the_project_is_that_of_its_tables(tmp_path):
    made = write_page(HERE / "results", tmp_path / "RESULTS.md").read_text()
    assert made == (HERE / "RESULTS.md").read_text()


def test_the_command_for_the_papers_table_starts(isomax, tmp_path):
    text = (HERE / "RESULTS.md").read_text()
    command = re.search(r"isomax (compare [^`]*?--recipe macedo2022.*?--detectors all)", text, re.S)
    words = command.group(1).replace("\\\n", " ").split()
    data = ["--id", "--ood"]
    kept = [w for i, w in enumerate(words) if w not in data and words[i - 1] not in data]
    assert "resnet34" in kept
    done = isomax(
        *(*kept, "--id", "digits", "--ood", "digits-held-out", "--output", tmp_path / "out"),
        *("--epochs", 1, "--seeds", 1, "--images-per-class", 20, "--test-images", 8),
        *("--detectors", "MaxSoftmax", "--workers", 0, "--no-track", "--no-costs"),
        *("--mixed-precision", "no"),  # bf16 is emulated on many CPUs, and slow
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["recipe"]["sched"] == "multistep"
    assert settings["recipe"]["decay_milestones"] == [150, 200, 250]
