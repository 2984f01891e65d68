"""One pass over test images gives the scores of every detector."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, LogitsDetector
from torch import Tensor

from isomax_adapters.pytorch_ood import Parts, kind_of
from isomax_evaluation.detection.draws import Draws
from isomax_evaluation.detection.fitting import attempt
from isomax_evaluation.extraction.one_pass import Loader, one_pass
from isomax_evaluation.extraction.store import Keeper, Outputs, OutputsInMemory

AT_ONCE = 2**28  # values, 1 GiB
JUDGED = 64  # ID images by which it is seen whether scores are more than rounding


def score(
    parts: Parts,
    detectors: Mapping[str, Detector],
    loader: Loader,
    advance: Callable[[int], None] = lambda done: None,
    keeper: Keeper | None = None,
    seed: int | None = None,
) -> tuple[Outputs, dict[str, Tensor], dict[str, str]]:
    """Score images with all detectors, in at most one pass.

    Every image is decoded once, and classified once for all detectors that work on logits,
    features or feature maps; those that need the images (for gradients) run on the same batches.
    If the keeper has the outputs already, there is a pass only for detectors of feature maps and
    images.

    :param parts: a model in evaluation mode
    :param detectors: fitted ones, by name
    :param loader: yields (images, labels)
    :param advance: called with the number of images done since the last call
    :param keeper: of the outputs on these images; they stay in memory if not given
    :param seed: of each detector's own random numbers; those of the process if not given
    :return: the model's outputs; scores of each detector, larger means more likely OOD; the
        detectors that raised an error, or gave scores that are no numbers or only rounding, with
        the reason
    """
    keeper = OutputsInMemory() if keeper is None else keeper
    on_maps = {n: d for n, d in detectors.items() if isinstance(d, FeatureMapsDetector)}
    on_outputs = {n: d for n, d in detectors.items() if scores_outputs(d)}
    on_images = {n: d for n, d in detectors.items() if n not in on_maps and n not in on_outputs}
    scores: dict[str, list[Tensor]] = {name: [] for name in detectors}
    draws = {name: Draws(seed) for name in detectors}
    failed: dict[str, str] = {}
    few_maps: list[Tensor] = []

    def keep(name: str, predict: Callable[[Any], Tensor], given: Any) -> None:
        if name in failed:
            return
        with draws[name]():
            reason = attempt(lambda: scores[name].append(predict(given).detach().float().cpu()))
        if reason:
            failed[name] = reason

    if on_maps or on_images or keeper.read() is None:
        for batch in one_pass(parts, loader, keeper, bool(on_maps), advance=advance):
            if batch.maps is not None and sum(map(len, few_maps)) < JUDGED:
                few_maps.append(batch.maps[batch.labels >= 0][:JUDGED])
            for name, detector in on_maps.items():
                with torch.no_grad():
                    keep(name, detector.predict_feature_maps, batch.maps)
            for name, detector in on_images.items():
                # no no_grad() here: these switch gradients on and off themselves
                keep(name, detector.predict, batch.images)
    found = keeper.read()
    assert found is not None
    with torch.no_grad():
        for name, detector in on_outputs.items():
            keep(name, partial(score_outputs, detector), found)
    together = {
        name: torch.cat(parts_of) for name, parts_of in scores.items() if name not in failed
    }
    for name, values in together.items():
        if bad := int((~values.isfinite()).sum()):
            failed[name] = f"{bad} of {len(values)} scores are NaN or infinite"
    known = (found.labels >= 0).nonzero()[:JUDGED, 0]
    judged = {"logits": found.logits[known], "features": found.features[known]}
    judged["feature_maps"] = torch.cat(few_maps) if few_maps else known
    with torch.no_grad():
        for name in together.keys() - failed.keys():
            kind = kind_of(detectors[name])
            if kind is None or len(judged[kind]) < 2:
                continue
            if reason := only_rounding(getattr(detectors[name], f"predict_{kind}"), judged[kind]):
                failed[name] = reason
    return found, {n: values for n, values in together.items() if n not in failed}, failed


def only_rounding(predict: Callable[[Tensor], Tensor], given: Tensor) -> str:
    """Why scores of ID images tell nothing, if they do: what they are of, moved by a unit in the
    last place of float32, up or down by chance, moves them by as much as they differ.

    :param predict: scores, :math:`N`
    :param given: logits, features or feature maps, :math:`N \\times \\dots`
    """
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, given.shape, generator=generator).to(given) - 1
    moved = given * (1 + torch.finfo(torch.float32).eps * signs)
    scores, again = (predict(one).float().double() for one in (given, moved))
    spread, rounding = scores.std(correction=0), (again - scores).square().mean().sqrt()
    # scores that do not move are equal, or told apart
    if not rounding > 0 or spread > 2 * rounding:
        return ""
    return f"scores of ID images are {scores.mean():.6g} and differ by rounding alone, {spread:.1g}"


def scores_outputs(detector: Detector) -> bool:
    """Whether a detector scores logits or features, so that it takes no pass of its own."""
    return isinstance(detector, (LogitsDetector, FeaturesDetector))


def score_outputs(detector: Any, outputs: Outputs) -> Tensor:
    """The scores of such a detector.

    Features are scored so many at a time that a product of images, classes and features, which some
    detectors make, has at most :data:`AT_ONCE` values.
    """
    if isinstance(detector, LogitsDetector):
        scores: Tensor = detector.predict_logits(outputs.logits)
        return scores
    rows = max(1, AT_ONCE // (outputs.logits.shape[1] * outputs.features.shape[1]))
    return torch.cat([detector.predict_features(part) for part in outputs.features.split(rows)])
