import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """An exported model; in the environment of the runtime it is made outside of it."""
    if given := os.environ.get("ISOMAX_TEST_MODEL"):
        return Path(given)
    path = tmp_path_factory.mktemp("model") / "colours.onnx"
    subprocess.run(
        [sys.executable, Path(__file__).with_name("onnx") / "make_model.py", path], check=True
    )
    return path
