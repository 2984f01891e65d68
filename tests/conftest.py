import importlib.util
import os
import socket
from dataclasses import replace

# two test processes on two cores: each library keeps to its own
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from .command import Command
from .image_folders import make_folder

if importlib.util.find_spec("hypothesis"):  # not where only the runtime is tested
    from hypothesis import settings

    # on a busy machine an example takes as long as it takes
    settings.register_profile("isomax", deadline=None)
    settings.load_profile("isomax")


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def isomax():
    """The command in processes of its own; gives status and what was printed."""
    with Command() as command:
        yield command


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three classes of 40 images."""
    return make_folder(tmp_path_factory.mktemp("photos"), ("ash", "birch", "cedar"), 40)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A comparison on the digits, short but whole."""
    from isomax_evaluation import compare
    from isomax_evaluation.training.recipes import RECIPES

    output = tmp_path_factory.mktemp("compare") / "out"
    return compare(
        output=output,
        losses=["softmax", "isomax"],
        detectors=[
            *("MaxSoftmax", "MaxLogit", "EnergyBased", "Entropy", "ODIN", "Mahalanobis"),
            "EntropicScore",
        ],
        seeds=2,
        recipe=replace(RECIPES["digits"], epochs=2),
    )
