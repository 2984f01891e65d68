"""A folder that version 0.1.0 made is gone on with, reported and tracked."""

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from packaging.version import Version

from isomax_evaluation import compare
from isomax_evaluation.detection.scores import read_scores
from isomax_evaluation.training.recipes import RECIPES

RELEASED = "74a008d004947ec2b028fdb97c2c39fefd25a70c"
ROOT = Path(__file__).parents[3]
MAKE = """
from dataclasses import replace
from isomax_evaluation import compare
from isomax_evaluation.recipes import RECIPES
compare(output="out", losses=["softmax", "isomax"], detectors=["MaxLogit", "KNN", "EntropicScore"],
        recipe=replace(RECIPES["digits"], epochs=1), seeds=1, ood=["digits-held-out"])
"""
ARGUMENTS = {
    "losses": ["softmax", "isomax"],
    "recipe": replace(RECIPES["digits"], epochs=1),
    "seeds": 1,
    "ood": ["digits-held-out"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The output folder of a comparison by the released code."""
    if Version(onnx.__version__) < Version("1.21"):
        pytest.skip("the released code takes onnx 1.21")
    folder = tmp_path_factory.mktemp("released")
    archive = subprocess.run(
        ["git", "archive", RELEASED, "plugin", "adapters", "evaluation"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip("takes the repository's history")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder / "code", filter="data")
    path = [str(folder / "code" / part) for part in ("plugin", "adapters", "evaluation")]
    subprocess.run(
        [sys.executable, "-c", MAKE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        check=True,
    )
    return folder / "out"


def test_it_is_gone_on_with(made, monkeypatch, isomax):
    before = {name: (made / f"{name}.csv").read_bytes() for name in ("results", "intervals")}
    scores = read_scores(made / "runs/isomax-seed0", "digits")
    assert set(scores) == {"MaxLogit", "KNN", "EntropicScore"}
    assert scores["KNN"].dtype == np.float32

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    # the same again: nothing is trained, fitted or scored
    with monkeypatch.context() as patched:
        patched.setattr("isomax_evaluation.training.train.fit", never)
        patched.setattr("isomax_evaluation.detection.testing.fit", never)
        patched.setattr("isomax_evaluation.detection.testing.score", never)
        names = ["MaxLogit", "KNN", "EntropicScore"]
        done = compare(output=made, detectors=names, **ARGUMENTS)
        assert before == {name: (made / f"{name}.csv").read_bytes() for name in before}
    assert "EntropicScore" in (made / "report.html").read_text()
    # more: nothing is trained
    monkeypatch.setattr("isomax_evaluation.training.train.fit", never)
    more = compare(output=made, detectors=["ViM", "Mahalanobis"], **ARGUMENTS)
    same = more.results.merge(done.results, on=["loss", "seed", "detector", "ood"])
    assert len(same) == len(done.results)
    assert (same["AUROC_x"] == same["AUROC_y"]).all()
    assert set(more.results["detector"]) == {*names, "ViM", "Mahalanobis"}
    assert (made / "runs/isomax-seed0/predictions.csv").is_file()
    # and tracked
    run = isomax("track", made)
    assert run.returncode == 0, run.stderr
    found = isomax("track", made)
    assert found.returncode == 0, found.stderr
    assert pd.read_csv(made / "costs.csv")["relative_time"].notna().all()
