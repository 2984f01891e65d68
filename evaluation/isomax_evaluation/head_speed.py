"""What the heads cost against ``nn.Linear``: ratios measured in one process, in turns."""

import gc
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import isomax_adapters.timm as isomax_timm
from isomax import DisMaxHead, IsoMaxHead, IsoMaxLoss, IsoMaxPlusHead
from isomax_evaluation.speed import alternate

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
        table.add_row(f"{name}, batch 16", f"{model_ratio(name, quick):.3f}x")
    return table


def head_ratios(batch: int, width: int, classes: int, quick: bool = False) -> list[float]:
    """Forward of IsoMax, of the broadcasting form, of IsoMax+ and DisMax; forward + loss +
    backward of IsoMax in time and in peak memory; each over that of ``nn.Linear``."""
    torch.manual_seed(0)
    features = torch.randn(batch, width)
    labels = torch.randint(classes, (batch,))
    linear = nn.Linear(width, classes)
    heads = {"isomax": IsoMaxHead, "isomax+": IsoMaxPlusHead, "dismax": DisMaxHead}
    built: dict[str, Any] = {name: make(width, classes) for name, make in heads.items()}
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


def model_ratio(name: str, quick: bool = False) -> float:
    """Inference of a whole model with an IsoMax head over that of the same with ``nn.Linear``."""
    torch.manual_seed(0)
    linear = timm.create_model(name).eval()
    isomax = isomax_timm.attach(timm.create_model(name)).eval()
    images = torch.randn(16, 3, 224, 224)
    with torch.no_grad():
        seconds = alternate(
            {"linear": lambda: linear(images), "isomax": lambda: isomax(images)},
            5 if quick else 25,
        )
    return seconds["isomax"] / seconds["linear"]


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
