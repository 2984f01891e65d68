"""What it costs to score an image: passes counted, times measured until they are told or spent."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_ood.api import Detector, FeaturesDetector, GradientDetector, LogitsDetector
from torch import Tensor, nn

from isomax_adapters.pytorch_ood import Parts, kind_of
from isomax_evaluation.speed.timing import ratio_to, repeated, seconds_of

COLUMNS = [
    *("detector", "fitted", "gradients", "hyperparameters", "forward", "backward"),
    *("ms_per_image", "relative_time", "spread"),
]


def cost_of_detectors(
    baseline: nn.Module,
    parts: Parts,
    detectors: Mapping[str, Detector],
    images: Tensor,
    budget: float,
    measuring: Callable[[str], None] = lambda name: None,
) -> pd.DataFrame:
    """What it costs to classify and score a batch, against classifying it with a softmax model.

    The forward pass is timed once, and detectors of logits, features or maps on what it gave; the
    others in turns with the softmax model. Each has an equal share of the time that is left, those
    that take no pass of their own first.

    :param baseline: the softmax model, in evaluation mode
    :param parts: the model that the detectors work on
    :param detectors: fitted detectors
    :param images: a batch; one that a detector fails on leaves that detector out
    :param budget: seconds; each is measured once whatever it takes
    :param measuring: called with the name of the detector that comes next
    :return: per detector: whether it is fitted, whether it takes gradients at inference, how many
        hyperparameters it has to search, forward and backward passes through the backbone,
        milliseconds per image, time as a multiple of the baseline's, and half of the 95% interval
        of that, NaN if it was measured once or twice
    """
    ends = time.perf_counter() + budget

    def share(left: int) -> float:
        return (ends - time.perf_counter()) / left

    classify = torch.no_grad()(partial(baseline, images))
    kept = _kept(parts, images, {kind_of(detector) for detector in detectors.values()})
    run = torch.no_grad()(partial(parts.logits_and_features, images))
    forward = ratio_to(classify, run, share(len(detectors) + 1))
    if baseline is parts.model:
        forward = replace(forward, ratio=1.0, spread=0.0)

    def behind_it(predict: Callable[[], object]) -> tuple[float, float]:
        seconds = forward.seconds + seconds_of(predict)
        return seconds, seconds / forward.seconds * forward.ratio

    rows: list[dict[str, Any]] = []
    ordered = sorted(detectors.items(), key=lambda item: kind_of(item[1]) is None)
    for place, (name, detector) in enumerate(ordered):
        measuring(name)
        predict: Callable[[], object]
        if kind := kind_of(detector):
            predict = torch.no_grad()(partial(getattr(detector, f"predict_{kind}"), kept[kind]))
        else:
            predict = predictor(detector, images)
        try:
            passes = count_passes(parts, predict)
        except Exception:  # the scores' table says why
            continue
        left = share(len(ordered) - place)
        if kind:
            found = repeated(partial(behind_it, predict), left)
            found = replace(found, spread=float(np.hypot(found.spread, forward.spread)))
        else:
            found = ratio_to(classify, predict, left)
        rows.append(
            {
                "detector": name,
                "fitted": bool(detector.requires_fit),
                "gradients": isinstance(detector, GradientDetector),
                "hyperparameters": len(detector.hyperparameter_space),
                "forward": passes[0] + bool(kind),
                "backward": passes[1],
                "ms_per_image": 1000 * found.seconds / len(images),
                "relative_time": found.ratio,
                "spread": found.spread,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _kept(parts: Parts, images: Tensor, kinds: set[str | None]) -> dict[str, Tensor]:
    with torch.no_grad():
        if "feature_maps" in kinds:
            outputs: tuple[Tensor, ...] = parts.logits_features_and_maps(images)
        else:
            outputs = parts.logits_and_features(images)
    return dict(zip(("logits", "features", "feature_maps"), outputs, strict=False))


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
    """Scores images, with gradients if the detector may want them."""
    # detectors of logits and features do not need gradients, the others switch them on and off
    gradients = not isinstance(detector, (LogitsDetector, FeaturesDetector))
    return torch.set_grad_enabled(gradients)(partial(detector.predict, images))
