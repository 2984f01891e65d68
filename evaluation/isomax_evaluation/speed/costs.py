"""What it costs to score an image: passes counted, times measured side by side."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from pytorch_ood.api import Detector, FeaturesDetector, GradientDetector, LogitsDetector
from torch import Tensor, nn

from isomax_adapters.pytorch_ood import Parts
from isomax_evaluation.speed.timing import ratio_to

COLUMNS = [
    *("detector", "outliers", "fitted", "gradients", "hyperparameters", "forward", "backward"),
    *("ms_per_image", "relative_time", "stable"),
]


def cost_of_detectors(
    baseline: nn.Module,
    parts: Parts,
    detectors: Mapping[str, Detector],
    images: Tensor,
    least: int = 7,
    most: int = 31,
    advance: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """What it costs to score a batch, against classifying it with a softmax model.

    Each detector is timed in turns with the baseline, until the ratio is stable.

    :param baseline: the softmax model, in evaluation mode
    :param parts: the model that the detectors work on
    :param detectors: fitted detectors
    :param images: a batch; one that a detector fails on leaves that detector out
    :param least: how often each is timed at least
    :param most: how often at most
    :param advance: called with the number of detectors done since the last call
    :return: per detector: whether it is fitted, whether it takes gradients at inference, how many
        hyperparameters it has to search, forward and backward passes through the backbone,
        milliseconds per image, time as a multiple of the baseline's, and whether that is stable
    """

    def classify() -> None:
        with torch.no_grad():
            baseline(images)

    rows: list[dict[str, Any]] = []
    for name, detector in detectors.items():
        predict = predictor(detector, images)
        try:
            forward, backward = count_passes(parts, predict)
        except Exception:  # the scores' table says why
            advance(1)
            continue
        time = ratio_to(classify, predict, least, most)
        rows.append(
            {
                "detector": name,
                "outliers": False,  # fitting leaves them out
                "fitted": bool(detector.requires_fit),
                "gradients": isinstance(detector, GradientDetector),
                "hyperparameters": len(detector.hyperparameter_space),
                "forward": forward,
                "backward": backward,
                "ms_per_image": 1000 * time.seconds / len(images),
                "relative_time": time.ratio,
                "stable": time.stable,
            }
        )
        advance(1)
    return pd.DataFrame(rows, columns=COLUMNS)


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
