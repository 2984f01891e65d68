"""What inference costs: passes counted, times measured side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from pytorch_ood.api import Detector, FeaturesDetector, GradientDetector, LogitsDetector
from torch import Tensor, nn

from isomax_adapters.pytorch_ood import Parts


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2, pause: float = 0
) -> dict[str, float]:
    """Median seconds of each function, run in turns so that a noisy machine is noisy for all.

    :param pause: seconds before each run, in which thread pools of the one before come to rest
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(pause)
            _wait_for_accelerator()
            started = time.perf_counter()
            function()
            _wait_for_accelerator()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured) for name, measured in times.items()}


def _wait_for_accelerator() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def cost_of_detectors(
    baseline: nn.Module,
    parts: Parts,
    detectors: Mapping[str, Detector],
    images: Tensor,
    repeats: int = 7,
) -> pd.DataFrame:
    """What it costs to score a batch, against classifying it with a softmax model.

    :param baseline: the softmax model, in evaluation mode
    :param parts: the model that the detectors work on
    :param detectors: fitted detectors
    :param images: a batch; one that a detector fails on leaves that detector out
    :return: per detector: whether it is fitted, whether it takes gradients at inference, how many
        hyperparameters it has to search, forward and backward passes through the backbone,
        milliseconds per image, and time as a multiple of the baseline's
    """

    def classify() -> None:
        with torch.no_grad():
            baseline(images)

    rows: list[dict[str, Any]] = []
    functions: dict[str, Callable[[], object]] = {"": classify}
    for name, detector in detectors.items():
        predict = predictor(detector, images)
        try:
            forward, backward = count_passes(parts, predict)
        except Exception:  # the scores' table says why
            continue
        functions[name] = predict
        rows.append(
            {
                "detector": name,
                "outliers": False,  # fitting leaves them out
                "fitted": bool(detector.requires_fit),
                "gradients": isinstance(detector, GradientDetector),
                "hyperparameters": len(detector.hyperparameter_space),
                "forward": forward,
                "backward": backward,
            }
        )
    seconds = alternate(functions, repeats)
    for row in rows:
        row["ms_per_image"] = 1000 * seconds[str(row["detector"])] / len(images)
        row["relative_time"] = seconds[str(row["detector"])] / seconds[""]
    return pd.DataFrame(rows)


def count_passes(parts: Parts, function: Callable[[], object]) -> tuple[int, int]:
    """How often ``function`` runs forward and backward through the backbone's first layer."""
    forward, backward = 0, 0
    # a layer: a model of tokens has parameters of its own, and parts of it are run without it
    first = next(m for m in parts.model.modules() if not list(m.children()) and _has_weights(m))

    def count_forward(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal forward
        forward += 1
        if output.requires_grad:
            output.register_hook(count_backward)

    def count_backward(gradient: Tensor) -> None:
        nonlocal backward
        backward += 1

    hook = first.register_forward_hook(count_forward)
    try:
        function()
    finally:
        hook.remove()
    return forward, backward


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def predictor(detector: Detector, images: Tensor) -> Callable[[], object]:
    # detectors of logits and features do not need gradients, the others switch them on and off
    gradients = not isinstance(detector, (LogitsDetector, FeaturesDetector))

    def predict() -> None:
        with torch.set_grad_enabled(gradients):
            detector.predict(images)

    return predict
