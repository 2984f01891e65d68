"""What is installed in parts says what is missing."""

import subprocess
import sys

import pytest

from isomax_adapters.extras import EXTRAS, MissingExtraError, need

# as if packages were not installed
WITHOUT = """
import importlib.util, sys
hidden = set(sys.argv.pop(1).split(","))
known = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in hidden else known(name, package)
importlib.util.find_spec = find_spec
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
RUN = WITHOUT + "from isomax_evaluation.cli import main; sys.argv[0] = 'isomax'; main()"
EVERYTHING = ",".join(module for modules in EXTRAS.values() for module in modules)


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("isomax", "timm"),
        ("isomax_adapters.timm", "timm"),
        ("isomax_adapters.pytorch_ood", "timm"),
        ("isomax_adapters.mlflow", "mlflow"),
    ],
)
def test_an_import_names_its_extra(module, extra):
    done = run(WITHOUT + f"import {module}", EVERYTHING)
    last = done.stderr.strip().splitlines()[-1]
    assert f"{module} needs" in last
    assert f"; pip install '.[{extra}]' in the folder of" in last


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        (("train", "--data", "."), "train"),
        (("compare",), "onnx,report"),
        (("calibrate", "resnet18", "--id", ".", "--output", "x"), "train"),
        (("export", "x", "x.onnx"), "train,onnx"),
        (("track", "x"), "mlflow"),
        (("speed", "x.onnx"), "timm"),
        (("list", "detectors"), "train,onnx"),
    ],
)
def test_a_command_names_its_extras_in_one_line(command, extras, tmp_path):
    done = run(RUN, EVERYTHING, *command)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("isomax: this command needs ")
    assert f"; pip install '.[{extras}]' in the folder of" in line


def test_training_without_tracking_says_how(photos, tmp_path):
    done = run(RUN, "mlflow", "train", "--data", photos, "--output", tmp_path / "run")
    (line,) = done.stderr.splitlines()
    assert "; pip install '.[mlflow]' in the folder of" in line
    assert line.endswith(", or leave tracking out with --no-track")
    assert not (tmp_path / "run").exists()


def test_scoring_takes_no_extra(compared, photos):
    done = run(RUN, EVERYTHING, "score", compared.output / "model.onnx", photos / "ash")
    assert done.returncode == 0, done.stderr


def test_a_model_is_loaded_where_only_mlflow_and_the_runtime_are():
    others = EVERYTHING.replace("mlflow,", "").replace("pandas,", "") + ",filelock"
    done = run(WITHOUT + "import isomax_adapters.runtime.pyfunc", others)
    assert done.returncode == 0, done.stderr


def test_only_what_is_missing_is_named(monkeypatch):
    need("report", "mlflow")
    monkeypatch.setitem(EXTRAS, "report", ("no_such_module", "json"))
    with pytest.raises(
        MissingExtraError, match=r"^x needs no_such_module, not .* '\.\[report\]' in the folder"
    ):
        need("report", by="x")
