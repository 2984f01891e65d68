"""Hyperparameters of detectors, searched by pytorch-ood on validation data, and kept."""

import copy
import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from pytorch_ood.api import Detector, FeaturesDetector, LogitsDetector
from pytorch_ood.utils import GridSearch
from torch import nn
from torch.utils.data import DataLoader

from isomax_adapters.pytorch_ood import Parts
from isomax_evaluation.data.digests import digest
from isomax_evaluation.detection.testing.trial import Trial
from isomax_evaluation.extraction.store import Outputs, together
from isomax_evaluation.output.progress import shown

FEW_IMAGES = 2000  # that detectors of images and feature maps are tuned on


def tuned(trial: Trial, detectors: Mapping[str, Detector]) -> dict[str, dict[str, Any]]:
    """Set the hyperparameters that the tuning set chooses, if there is one; a search that is kept
    is not made again.

    :return: the values that were set, by detector; none of one that no candidate works for
    """
    if trial.choosing is None:
        return {}
    chosen = {}
    about = trial.about | {"images": list(map(digest, (trial.training, *trial.choosing)))}
    for name, detector in detectors.items():
        if detector.hyperparameter_space:
            key = {"hyperparameters of": name} | about
            chosen[name] = trial.cache.kept(key, partial(_chosen, trial, name, detector))
            detector.set_hyperparameters(**chosen[name])
    return chosen


def _chosen(trial: Trial, name: str, detector: Detector) -> dict[str, Any]:
    assert trial.choosing is not None
    validation, tuning = trial.choosing
    with shown(trial.progress, f"choosing hyperparameters of {name}, {trial.model.name}"):
        step = -(-len(trial.training) // FEW_IMAGES)
        few = trial.training.take(np.arange(0, len(trial.training), step))
        return tune(
            trial.model.parts,
            {name: detector},
            trial.outputs(trial.training),
            together(trial.outputs(validation), trial.outputs(tuning)),
            trial.loader(few),
            trial.loader(validation, tuning),
        ).get(name, {})


def tune(
    parts: Parts,
    detectors: Mapping[str, Detector],
    training: Outputs,
    validation: Outputs,
    few_images: DataLoader,
    validation_images: DataLoader,
) -> dict[str, dict[str, Any]]:
    """Set each detector's hyperparameters to those of the highest AUROC on the validation data.

    What is searched is each detector's own ``hyperparameter_space``, by pytorch-ood's
    ``GridSearch``. Detectors of logits and features are given the model's outputs; the others read
    the images anew for each candidate.

    :param training: outputs on ID images to fit on
    :param validation: outputs on ID images and OOD images (labels < 0)
    :param few_images: some of the training images, for detectors that read images
    :param validation_images: the images of ``validation``
    :return: the values that were set, by detector; one that no candidate works for keeps its own
    """
    tunable = {name: d for name, d in detectors.items() if d.hyperparameter_space}
    chosen = {}
    for name, detector in tunable.items():
        if isinstance(detector, (LogitsDetector, FeaturesDetector)):
            kind = "logits" if isinstance(detector, LogitsDetector) else "features"
            # the search wants a model to run: one that gives back what was extracted
            searched: Any = copy.copy(detector)
            setattr(searched, "model" if kind == "logits" else "encoder", nn.Identity())
            loaders: Any = [
                [(getattr(outputs, kind), outputs.labels)] for outputs in (training, validation)
            ]
        else:
            searched, loaders = detector, [few_images, validation_images]
        best = _search(searched, loaders, str(parts.device))
        if best is not None:
            chosen[name] = best
            detector.set_hyperparameters(**best)
    return chosen


def _search(detector: Detector, loaders: Any, device: str) -> dict[str, Any] | None:
    space = detector.hyperparameter_space
    before = {name: getattr(detector, name) for name in space if hasattr(detector, name)}
    best, highest = None, -math.inf
    for values in itertools.product(*space.values()):
        candidate = dict(zip(space, values, strict=True))
        # one candidate at a time: one that cannot work, such as more neighbours than images, would
        # end the search of them all
        search = GridSearch(
            detector,
            *loaders,
            hyperparameter_space={key: [value] for key, value in candidate.items()},
            device=device,
        )
        try:
            search.run()
        except Exception:  # whatever a detector raises; the table says so if all fail
            continue
        if search.best_score_ > highest:
            best, highest = candidate, search.best_score_
    detector.hyperparameter_space = space
    if best is None:
        detector.set_hyperparameters(**before)
    return best
