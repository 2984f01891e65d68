"""The command as a process, without the ten seconds in which each would import the same."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKS = """
import json, os, sys, warnings
import accelerate, mlflow, onnx, pandas, pytorch_ood, scipy.stats, sklearn, timm, torch, torchvision
import torch.distributed.nn.functional
for package in ("isomax", "isomax_adapters", "isomax_evaluation"):
    warnings.filterwarnings("error", category=EncodingWarning, module=package)
for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number, file in enumerate(asked["streams"]):
        os.dup2(os.open(file, os.O_RDWR), number)
    sys.argv[:] = ["isomax", *asked["arguments"]]
    break
else:
    sys.exit()
from isomax_evaluation.cli import main
main()
"""


class Command:
    """Runs ``isomax`` in processes forked from one that has imported the libraries, nothing of
    ours, and does nothing else.

    :param options: of the interpreter
    :param environment: changes of it, for all of these processes
    """

    def __init__(self, *options: str, **environment: str) -> None:
        self._options, self._environment = options, environment
        self._forks: subprocess.Popen[str] | None = None

    def __call__(self, *args, cwd=None, **environment: str) -> subprocess.CompletedProcess[str]:
        """:param environment: more changes; an interpreter that starts does not see them"""
        arguments = list(map(str, args))
        known = os.environ | self._environment
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, *self._options, "-c", _FORKS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=known,
                text=True,
            )
        with tempfile.TemporaryDirectory() as folder:
            streams = [os.devnull, f"{folder}/out", f"{folder}/err"]
            for file in streams[1:]:
                Path(file).touch()
            asked = {
                "arguments": arguments,
                "cwd": str(cwd or Path.cwd()),
                "environment": known | environment,
                "streams": streams,
            }
            print(json.dumps(asked), file=self._forks.stdin, flush=True)
            status = int(self._forks.stdout.readline())
            out, err = (
                Path(file).read_text(encoding="utf-8", errors="surrogateescape")
                for file in streams[1:]
            )
        return subprocess.CompletedProcess(["isomax", *arguments], status, out, err)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        """End the process that the others come from.

        Killed, for it does not see that its input ends while a process that a test has forked
        (a worker of a DataLoader) holds the other end.
        """
        if self._forks is not None:
            with self._forks:
                self._forks.kill()
