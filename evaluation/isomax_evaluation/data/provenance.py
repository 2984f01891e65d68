"""What a run was made from: datasets, package versions, commit, command."""

import getpass
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from isomax_evaluation.data.datasets import Images
from isomax_evaluation.output.files import write_json

PACKAGES = ("isomax", "torch", "timm", "pytorch-ood", "mlflow", "onnxruntime", "numpy")
SAMPLES = 100  # images of a dataset whose pixels go into its digest


def write_provenance(folder: Path, datasets: Iterable[tuple[str, Images]]) -> None:
    """``provenance.json``: where a run's results come from.

    :param datasets: the split ("train", "validation", "test", "ood") and images of each
    """
    content = {
        "command": " ".join(["isomax", *sys.argv[1:]]),
        "user": _user(),
        "git_commit": git_commit(),
        "versions": {"python": sys.version.split()[0], **{p: version(p) for p in PACKAGES}},
        "datasets": [describe(split, images) for split, images in datasets],
    }
    write_json(folder / "provenance.json", content)


def describe(split: str, images: Images) -> dict[str, Any]:
    """Name, digest, size and origin of a dataset."""
    source = os.path.abspath(os.path.commonpath(images.paths)) if images.paths else images.name
    return {
        "name": Path(images.name).name,
        "split": split,
        "digest": digest(images),
        "size": len(images),
        "classes": len(images.class_names),
        "source": source,
    }


def digest(images: Images) -> str:
    """16 hexadecimal digits that change with the choice of images, their labels and class names,
    the names and sizes of their files, and the pixels of a sample of them."""
    found = hashlib.sha256(repr(images.class_names).encode())
    found.update(np.ascontiguousarray(images.labels, dtype=np.int64).tobytes())
    if images.paths:
        for index in images.indices:
            path = Path(images.paths[index])
            found.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    else:
        found.update(np.ascontiguousarray(images.indices, dtype=np.int64).tobytes())
    for position in np.unique(np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round()):
        found.update(np.asarray(images.image(int(position))).tobytes())
    return found.hexdigest()[:16]


def git_commit() -> str | None:
    """The commit that the current folder is at; none outside of a repository, or without git."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id without a name
        return str(os.getuid())
