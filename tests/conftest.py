import os
import socket

# two test processes on two cores: each library keeps to its own
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
