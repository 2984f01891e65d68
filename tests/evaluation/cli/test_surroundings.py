"""Consoles that know few letters, homes that cannot be written, disks that are full."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isomax_adapters.onnx.runtime import Scorer

from ...image_folders import make_folder

CODE = """
import sys, warnings
for name in ("isomax", "isomax_adapters", "isomax_evaluation"):
    warnings.filterwarnings("error", category=EncodingWarning, module=name)
from isomax_evaluation.cli import main
sys.argv[0] = "isomax"
main()
"""
#: nobody, not even root, makes a file in this home
NOWHERE = {"HOME": "/proc", "XDG_CACHE_HOME": "/proc", "XDG_CONFIG_HOME": "/proc"}
POOR = {
    "Latin console": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SHORT = ("--model", "test_resnet", "--image-size", 32, "--recipe", "scratch", "--epochs", 1,
         "--val-share", 0.4)  # fmt: skip


def isomax(*args, before=(), **environment):
    """The command; ``before`` it, what runs it."""
    code = [sys.executable, "-X", "warn_default_encoding", "-c", CODE]
    known = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    return subprocess.run(
        [*before, *code, *map(str, args)],
        env=known | environment,
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Classes and files whose names few consoles can show."""
    root = make_folder(tmp_path_factory.mktemp("odd"), ("Füchse", "中文", "=x"), 30)
    os.rename(root / "Füchse/000.jpg", os.fsencode(root) + "/Füchse/a\u0142".encode() + b"\xff.jpg")
    os.rename(root / "中文/000.jpg", root / "中文/=1+2.jpg")
    return root


@pytest.mark.parametrize("where", POOR)
def test_the_console_and_the_home_change_nothing(odd, tmp_path, where):
    environment = POOR[where] | NOWHERE
    done = isomax("train", "--data", odd, *SHORT, "--no-track", "--output", tmp_path / "run",
                  **environment)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("ascii", "backslashreplace")
    with (tmp_path / "run/splits.csv").open("rb") as file:
        content = file.read()
    assert "Füchse/a\u0142".encode() + b"\xff.jpg" in content
    assert "中文/=1+2.jpg".encode() in content
    rows = list(csv.DictReader(content.decode("utf-8", "surrogateescape").splitlines()))
    assert len(rows) == 90
    run = tmp_path / "run"
    for more in (
        ("calibrate", run, "--id", odd, "--detector", "SHE", "--output", tmp_path / "she"),
        ("compare", "--models", run, "--id", odd, "--ood", f"Vögel={odd}", "--detectors",
         "MaxLogit", "--no-track", "--output", tmp_path / "compared"),
        ("track", tmp_path / "compared"),
    ):  # fmt: skip
        done = isomax(*more, **environment)
        assert done.returncode == 0, done.stderr.decode("ascii", "backslashreplace")
    model = tmp_path / "model.onnx"
    done = isomax("export", tmp_path / "run/model", model, **environment)
    assert done.returncode == 0, done.stderr.decode("ascii", "backslashreplace")
    assert Scorer(model).class_names == ["=x", "Füchse", "中文"]
    for how in ((), ("--json",), ("--out", tmp_path / "scores.csv")):
        done = isomax("score", model, odd, *how, **environment)
        assert done.returncode == 0, done.stderr.decode("ascii", "backslashreplace")
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
    done = isomax(
        command,
        *arguments,
        before=with_small_disk(place, size),
        MLFLOW_TRACKING_URI=f"sqlite:///{place}/mlflow.db",
    )
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("isomax: "), last
    assert "No space left" in last or "full" in last or "make room" in last, last
