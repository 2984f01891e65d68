"""Export the smallest member of every timm family; print the counts and each failure.

``tox -e onnx-sweep``, or ``python tests/adapters/onnx/sweep.py [PATTERN...]``. Random weights from
a fixed seed under an IsoMax head; ``export`` compares each file with PyTorch before it counts.
Whose a failure is comes from the backbone alone, one step after the other: can torch trace it, can
torch.onnx convert it, does onnx accept it, does ONNX Runtime load it and give torch's logits? What
passes all that and fails in the whole graph is ours.
"""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from timm.models import _registry

import isomax_adapters.timm as isomax_timm
from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import export_network
from isomax_adapters.timm.attaching import head_modules
from isomax_adapters.timm.registry import is_ours

CLASSES = 7
MAX_PARAMETERS = 30_000_000


def smallest_members(patterns: list[str]) -> dict[str, tuple[str, int]]:
    """Family -> its architecture with the fewest parameters, and how many it has."""
    smallest: dict[str, tuple[str, int]] = {}
    for name in timm.list_models(patterns or "*"):
        if is_ours(name) or not timm.is_model(f"isomax_{name}"):
            continue
        with torch.device("meta"):
            size = sum(p.numel() for p in timm.create_model(name, num_classes=CLASSES).parameters())
        family = _registry._model_to_module[name]
        if family not in smallest or size < smallest[family][1]:
            smallest[family] = (name, size)
    return smallest


def make_model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(f"isomax_{name}", num_classes=CLASSES).eval()
    for head in head_modules(model):
        torch.nn.init.normal_(head.prototypes, std=0.1)  # as after some training
    return model


def example(model: torch.nn.Module) -> torch.Tensor:
    size = timm.data.resolve_model_data_config(model)["input_size"]
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


def export_one(name: str, folder: Path) -> None:
    """The whole file, verified, and scored once more as users do.

    :raises Exception: whatever is wrong
    """
    model = make_model(name)
    images = example(model)
    with torch.no_grad():
        logits = torch.cat([model(images + shift) for shift in torch.linspace(-1, 1, 10)])
    calibration = Calibration.fit(logits, logits.argmax(dim=1), alpha=0.1)
    isomax_timm.save_model(model, folder / "model", calibration=calibration)
    export(folder / "model", folder / "model.onnx")


def whose(name: str) -> str:
    """Who fails first on the backbone alone; ``ours`` if nobody does."""
    model = make_model(name)
    images = example(model)
    try:
        torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception:
        return "torch"
    try:
        network = export_network(model, tuple(images.shape[1:]))
    except Exception:
        return "torch.onnx"
    try:
        onnx.checker.check_model(network, full_check=True)
    except Exception:
        return "onnx"
    try:
        session = onnxruntime.InferenceSession(network.SerializeToString())
        (found,) = session.run(None, {"pixels": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-3, atol=1e-3)
    except Exception:
        return "onnxruntime"
    return "ours"


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    smallest = smallest_members(sys.argv[1:])
    large = {f: member for f, member in smallest.items() if member[1] > MAX_PARAMETERS}
    tried = {f: member for f, member in smallest.items() if f not in large}
    print(f"{len(smallest)} families, {len(tried)} with a member of at most 30 M parameters")
    for family, (name, size) in large.items():
        print(f"  skipped {family}: its smallest, {name}, has {size / 1e6:.0f} M", flush=True)
    failures: dict[str, list[str]] = {}
    for number, (family, (name, size)) in enumerate(tried.items(), 1):
        started = time.time()
        try:
            with tempfile.TemporaryDirectory() as folder:
                export_one(name, Path(folder))
            outcome = "ok"
        except Exception as error:
            owner = whose(name)
            outcome = f"{type(error).__name__}: {' '.join(str(error).split())}"
            failures.setdefault(owner, []).append(f"{family} ({name}): {outcome}")
        print(
            f"{number}/{len(tried)} {family} {name} {size / 1e6:.1f} M "
            f"{time.time() - started:.0f} s: {outcome[:300]}",
            flush=True,
        )
    failed = sum(map(len, failures.values()))
    print(f"exported and verified: {len(tried) - failed} of {len(tried)} families")
    for owner, reasons in failures.items():
        print(f"{owner}: {len(reasons)}")
        for reason in reasons:
            print(f"  {reason[:600]}")
    return bool(failures.get("ours"))


if __name__ == "__main__":
    sys.exit(main())
