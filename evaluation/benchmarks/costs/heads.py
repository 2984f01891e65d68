"""What the heads cost against ``nn.Linear``: ratios measured in one process, in turns.

``tox -e head-costs [-- --quick]``
"""

import argparse
import gc
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import isomax_adapters.timm as isomax_timm
from isomax import IsoMaxLoss
from isomax.heads import HEADS
from isomax_evaluation.speed.timing import alternate

SHAPES = ((128, 512, 10), (128, 512, 100), (64, 2048, 1000), (64, 1024, 21841))
MODELS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224")
THREADS = 2


def measure(quick: bool = False) -> Table:
    """Ratios to a linear layer of the same shape, and of whole models to the same with it."""
    torch.set_num_threads(THREADS)
    table = Table(
        title=f"time and memory relative to nn.Linear; {platform.machine()}, {THREADS} threads, "
        f"torch {torch.__version__}, medians of alternating runs",
        title_justify="left",
    )
    for column in ("shape (B, D, C) or model", "forward"):
        table.add_column(column, no_wrap=True)
    for column in ("broadcasting", "IsoMax+", "DisMax", "training step", "peak memory"):
        table.add_column(column, justify="right")
    for shape in SHAPES:
        table.add_row(str(shape), *(f"{ratio:.2f}x" for ratio in head_ratios(*shape, quick)))
    for name in MODELS:
        inference, training = model_ratios(name, quick)
        table.add_row(f"{name}, batch 16", f"{inference:.3f}x", "", "", "", f"{training:.3f}x")
    return table


def head_ratios(batch: int, width: int, classes: int, quick: bool = False) -> list[float]:
    """Forward of IsoMax, of the broadcasting form, of IsoMax+ and DisMax; forward + loss +
    backward of IsoMax in time and in peak memory; each over that of ``nn.Linear``."""
    torch.manual_seed(0)
    features = torch.randn(batch, width)
    labels = torch.randint(classes, (batch,))
    linear = nn.Linear(width, classes)
    built: dict[str, Any] = {name: make(width, classes) for name, make in HEADS.items()}
    nn.init.normal_(built["isomax"].prototypes)
    repeats = max(5, min(200, int(2e9 / (batch * width * classes)))) // (4 if quick else 1)

    def forward(module: nn.Module) -> Callable[[], object]:
        return lambda: module(features)

    def broadcasting() -> None:
        # in slices: the whole of it would take batch * width * classes numbers
        prototypes = built["isomax"].prototypes
        for start in range(0, batch, 4):
            (features[start : start + 4, None] - prototypes).norm(dim=2)

    inputs = features.clone().requires_grad_()

    def step(module: nn.Module, criterion: Callable[..., torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            module.zero_grad()
            inputs.grad = None
            criterion(module(inputs), labels).backward()

        return run

    with torch.no_grad():
        seconds = alternate(
            {"linear": forward(linear), **{n: forward(h) for n, h in built.items()}}, repeats
        )
        slow = alternate({"linear": forward(linear), "slow": broadcasting}, 3, warmup=1)
    steps = {
        "linear": step(linear, F.cross_entropy),
        "isomax": step(built["isomax"], IsoMaxLoss()),
    }
    training = alternate(steps, repeats)
    memory = {name: peak_memory(run) for name, run in steps.items()}
    return [
        seconds["isomax"] / seconds["linear"],
        slow["slow"] / slow["linear"],
        seconds["isomax+"] / seconds["linear"],
        seconds["dismax"] / seconds["linear"],
        training["isomax"] / training["linear"],
        memory["isomax"] / memory["linear"],
    ]


def model_ratios(name: str, quick: bool = False) -> tuple[float, float]:
    """A whole model with an IsoMax head over the same with ``nn.Linear``: inference at 224 pixels,
    and a training step (forward, loss, backward, SGD) at 112 or the model's own size."""
    torch.manual_seed(0)
    models = {"linear": timm.create_model(name), "isomax": timm.create_model(name)}
    isomax_timm.attach(models["isomax"])
    images = torch.randn(16, 3, 224, 224)
    labels = torch.randint(1000, (16,))
    fixed = models["linear"].pretrained_cfg.get("fixed_input_size")
    small = images if fixed else images[:, :, ::2, ::2].contiguous()
    criteria: dict[str, Callable[..., torch.Tensor]] = {
        "linear": F.cross_entropy,
        "isomax": IsoMaxLoss(),
    }

    def step(kind: str) -> Callable[[], object]:
        model = models[kind]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

        def run() -> None:
            optimizer.zero_grad()
            criteria[kind](model(small), labels).backward()
            optimizer.step()

        return run

    with torch.no_grad():
        for model in models.values():
            model.eval()
        inference = alternate(
            {kind: lambda model=model: model(images) for kind, model in models.items()},  # type: ignore[misc]
            5 if quick else 31,
        )
    for model in models.values():
        model.train()
    training = alternate({kind: step(kind) for kind in models}, 3 if quick else 15)
    return inference["isomax"] / inference["linear"], training["isomax"] / training["linear"]


def peak_memory(run: Callable[[], object]) -> int:
    """Most bytes that torch holds at once during ``run``, beyond what it held before."""
    run()
    gc.collect()
    with (
        _silent_errors(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def _silent_errors() -> Iterator[None]:
    """Without what the profiler's C++ side prints."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    Console(width=140).print(measure(parser.parse_args().quick))


if __name__ == "__main__":
    main()
