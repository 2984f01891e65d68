"""A script of somebody else's, run with our models registered."""

import subprocess
import sys

import pytest

from isomax_adapters.timm.__main__ import main

SCRIPT = """
import argparse
import timm
import beside

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    model = timm.create_model(**timm.models.resolve_model_input_args(
        parser.parse_args().model, {}, num_classes=3
    ))
    print(beside.NAME, type(model.get_classifier()).__name__)
"""


def test_a_script_finds_our_models(tmp_path):
    script = tmp_path / "somebody's validate.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'imported'")
    done = subprocess.run(
        [sys.executable, "-m", "isomax_adapters.timm", script, "--model", "isomax_test_resnet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", "IsoMaxHead"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SCRIPT"),
        (["--help"], "validate.py"),
        (["missing.py"], "there is no script missing.py"),
    ],
)
def test_what_is_no_script_is_named(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["isomax_adapters.timm", *arguments])
    with pytest.raises(SystemExit, match=message):
        main()
