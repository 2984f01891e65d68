"""Export the smallest member of every timm family; print the counts and each failure.

``tox -e onnx-sweep [-- PATTERN...]``. Random weights from a fixed seed under an IsoMax head;
``export`` compares each file with PyTorch before it counts. Whose a failure is comes from the
network alone, one step after the other: can torch trace it, with a free batch size and with a fixed
one, can torch.onnx convert it, does onnx accept it, does ONNX Runtime load it and give torch's
logits, and if not, does onnx's reference? What passes all that and fails in the whole graph is
ours. A family that crashes takes its own process with it.
"""

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx.reference import ReferenceEvaluator
from timm.models import _registry

import isomax_adapters.timm as isomax_timm
from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import export_network
from isomax_adapters.timm.attaching import head_modules
from isomax_adapters.timm.registry import is_ours

CLASSES = 7
MAX_PARAMETERS = 30_000_000
MAX_REFERENCE_PARAMETERS = 10_000_000  # onnx's reference is slow


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
    """Who fails first on the network alone; ``ours`` if nobody does."""
    model = make_model(name)
    images = example(model)
    with torch.no_grad():
        logits = model(images).numpy()
    try:
        torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception:
        try:
            torch.export.export(model, (images,))
        except Exception:
            return "torch"
        return "torch or the model, with a free batch size only"
    try:
        network = export_network(model, tuple(images.shape[1:]))
    except Exception:
        return "torch.onnx"
    try:
        onnx.checker.check_model(network, full_check=True)
    except Exception:
        return "onnx"

    def gives_the_logits(make: Callable[[bytes], Any]) -> bool:
        try:
            (found,) = make(network.SerializeToString()).run(None, {"pixels": images.numpy()})
            return np.allclose(found, logits, rtol=1e-3, atol=1e-3)
        except Exception:
            return False

    if gives_the_logits(onnxruntime.InferenceSession):
        return "ours"
    if sum(p.numel() for p in model.parameters()) > MAX_REFERENCE_PARAMETERS:
        return "onnxruntime or torch.onnx"
    reference = gives_the_logits(lambda file: ReferenceEvaluator(onnx.load_from_string(file)))
    return "onnxruntime" if reference else "torch.onnx"


def try_one(name: str) -> tuple[str, str]:
    """What came of a member, and whose it is if that is no ``ok``."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            export_one(name, Path(folder))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}", whose(name)
    return "ok", ""


def be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=be_quiet)


def main() -> int:
    be_quiet()
    smallest = smallest_members(sys.argv[1:])
    large = {f: member for f, member in smallest.items() if member[1] > MAX_PARAMETERS}
    tried = {f: member for f, member in smallest.items() if f not in large}
    print(f"{len(smallest)} families, {len(tried)} with a member of at most 30 M parameters")
    for family, (name, size) in large.items():
        print(f"  skipped {family}: its smallest, {name}, has {size / 1e6:.0f} M", flush=True)
    failures: dict[str, list[str]] = {}
    process = new_process()
    for number, (family, (name, size)) in enumerate(tried.items(), 1):
        started = time.time()
        try:
            outcome, owner = process.submit(try_one, name).result()
        except BrokenProcessPool:
            outcome, owner, process = "its process crashed", "unknown", new_process()
        if owner:
            failures.setdefault(owner, []).append(f"{family} ({name}): {outcome}")
        print(
            f"{number}/{len(tried)} {family} {name} {size / 1e6:.1f} M "
            f"{time.time() - started:.0f} s: {outcome[:300]}",
            flush=True,
        )
    process.shutdown()
    failed = sum(map(len, failures.values()))
    print(f"exported and verified: {len(tried) - failed} of {len(tried)} families")
    for owner, reasons in failures.items():
        print(f"{owner}: {len(reasons)}")
        for reason in reasons:
            print(f"  {reason[:600]}")
    return bool(failures.get("ours"))


if __name__ == "__main__":
    sys.exit(main())
