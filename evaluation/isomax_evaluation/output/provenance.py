"""What a run was made from: datasets, package versions, commit, command."""

import getpass
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isomax_evaluation.output.files import TEXT, write_json

PACKAGES = ("isomax", "torch", "timm", "pytorch-ood", "mlflow", "onnxruntime", "numpy")


def write_provenance(folder: Path, datasets: Iterable[dict[str, Any]]) -> None:
    """``provenance.json``: where a run's results come from.

    :param datasets: name, split ("train", "validation", "test", "ood"), digest, size, number of
        classes and source of each
    """
    content = {
        "command": " ".join(["isomax", *sys.argv[1:]]),
        "user": _user(),
        "git_commit": git_commit(),
        "versions": {"python": sys.version.split()[0], **_versions()},
        "datasets": list(datasets),
    }
    write_json(folder / "provenance.json", content)


def git_commit() -> str | None:
    """The commit that the current folder is at; none outside of a repository, or without git."""
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=False, **TEXT)
    except OSError:  # no git, or none that may be run
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra
            found[package] = version(package)
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id without a name
        return str(os.getuid())
