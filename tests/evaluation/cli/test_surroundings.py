"""Consoles that know few letters, homes that cannot be written, disks that are full."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isomax_adapters.runtime.scorer import Scorer

from ...command import Command
from ...image_folders import make_folder

#: nobody, not even root, makes a file in this home
NOWHERE = {"HOME": "/proc", "XDG_CACHE_HOME": "/proc", "XDG_CONFIG_HOME": "/proc"}
POOR = {
    "Latin console": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SHORT = ("--model", "test_resnet", "--image-size", 32, "--recipe", "scratch", "--epochs", 1,
         "--val-share", 0.4)  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Classes and files whose names few consoles can show."""
    root = make_folder(tmp_path_factory.mktemp("odd"), ("Füchse", "中文", "=x"), 30)
    os.rename(root / "Füchse/000.jpg", os.fsencode(root) + "/Füchse/a\u0142".encode() + b"\xff.jpg")
    os.rename(root / "中文/000.jpg", root / "中文/=1+2.jpg")
    return root


@pytest.fixture(scope="module", params=POOR)
def poor(request):
    """The command where little can be shown, and nothing can be written at home."""
    with Command("-X", "warn_default_encoding", **POOR[request.param], **NOWHERE) as command:
        yield command


def test_the_console_and_the_home_change_nothing(poor, odd, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    done = poor("train", "--data", odd, *SHORT, "--no-track", "--output", tmp_path / "run")
    assert done.returncode == 0, ascii(done.stderr)
    with (tmp_path / "run/splits.csv").open("rb") as file:
        content = file.read()
    assert "Füchse/a\u0142".encode() + b"\xff.jpg" in content
    assert "中文/=1+2.jpg".encode() in content
    rows = list(csv.DictReader(content.decode("utf-8", "surrogateescape").splitlines()))
    assert len(rows) == 90
    run = tmp_path / "run"
    other = make_folder(tmp_path / "other", ("Vögel",), 9, seed=1)
    for more in (
        ("calibrate", run, "--id", odd, "--detector", "SHE", "--output", tmp_path / "she"),
        ("compare", "--models", run, "--id", odd, "--ood", f"Vögel={other}", "--detectors",
         "MaxLogit", "--no-track", "--output", tmp_path / "compared"),
        ("track", tmp_path / "compared"),
    ):  # fmt: skip
        done = poor(*more)
        assert done.returncode == 0, ascii(done.stderr)
    model = tmp_path / "model.onnx"
    done = poor("export", tmp_path / "run/model", model)
    assert done.returncode == 0, ascii(done.stderr)
    assert Scorer(model).class_names == ["=x", "Füchse", "中文"]
    for how in ((), ("--json",), ("--out", tmp_path / "scores.csv")):
        done = poor("score", model, odd, *how)
        assert done.returncode == 0, ascii(done.stderr)
        assert "onnxruntime" not in done.stderr
        if how == ("--json",):
            names = [json.loads(line)["class_name"] for line in done.stdout.splitlines()]
            assert set(names) <= {"=x", "Füchse", "中文"}
        elif not how:
            assert len(done.stdout.splitlines()) == 91
    text = (tmp_path / "scores.csv").read_text(encoding="utf-8")
    assert text.count("\n") == 91


def with_small_disk(place, kilobytes):
    """What runs a command with a file system of its own at a place."""
    script = f'mount -t tmpfs -o size={kilobytes}k none "$0" && exec "$@"'
    return "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, place


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    place = tmp_path_factory.mktemp("disk")
    runner = [*with_small_disk(place, 100), "true"]
    if not shutil.which("unshare") or subprocess.run(runner, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    return Path(place)


@pytest.mark.parametrize("command", ["train", "compare", "calibrate", "export", "score", "track"])
def test_a_full_disk_is_one_line(command, small_disk, photos, compared):
    run = compared.output / "runs/softmax-seed0"
    place = small_disk
    arguments, size = {
        "train": (("--data", photos, *SHORT, "--no-track", "--output", place / "run"), 200),
        "compare": (
            ("--models", run, "--detectors", "MaxLogit", "--no-track", "--output", place / "out"),
            200,
        ),
        "calibrate": ((run, "--id", "digits", "--output", place / "folder"), 200),
        "export": ((run / "model", place / "model.onnx"), 100),
        "score": ((compared.output / "model.onnx", photos, "--out", place / "scores.csv"), 4),
        "track": ((compared.output,), 100),
    }[command]
    isomax = Path(sys.executable).parent / "isomax"
    done = subprocess.run(
        [*with_small_disk(place, size), isomax, command, *map(str, arguments)],
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("isomax: "), last
    assert "No space left" in last or "full" in last or "make room" in last, last
