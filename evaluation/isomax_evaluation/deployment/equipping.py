"""A fitted detector, temperature and threshold for a model; a model folder that holds them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_ood.api import Detector, FeaturesDetector

from isomax.calibration import Calibration
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.pytorch_ood import Saved, detectors_for, save_detector, state_of, with_bank
from isomax_adapters.timm import save_model
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation.detection.fitting import doubt_of_fit, fit
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.extraction.doubts import doubts_of
from isomax_evaluation.extraction.store import Keeper, Outputs, OutputsInMemory
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.progress import Progress, shown, tell, warn


@dataclass(frozen=True)
class ModelBatches:
    """Images in batches, as a model takes them."""

    loader: Iterable[tuple[torch.Tensor, torch.Tensor]]
    keeper: Keeper | None = None  #: of what the model gives for them, if that is kept
    digest: str | None = None  #: of the images

    @property
    def count(self) -> int | None:
        """How many there are, if the loader knows."""
        data: Any = getattr(self.loader, "dataset", None)
        return len(data) if hasattr(data, "__len__") else None


@dataclass(frozen=True)
class Equipment:
    """What a model is to be equipped with."""

    detector: str | None  #: one of ``isomax_adapters.pytorch_ood.NAMES``; ``None``: of the logits
    alpha: float = 0.05  #: false-alarm rate of the threshold
    guarantee: str = "established"
    bank: int | None = None  #: of detectors that compare with each fitted sample, at most so many
    hyperparameters: Mapping[str, Any] | None = None  #: other than the detector's own


def equip(
    model: Model,
    wanted: Equipment,
    training: ModelBatches | None,
    held_out: ModelBatches,
    folder: Path,
    progress: Progress,
) -> Calibration:
    """Fit a detector, calibrate its threshold, and write the model with both as a model folder.

    :param training: ID images that the detector is fitted on; none if it is not fitted
    :param held_out: ID images that neither model nor detector has seen
    :param folder: whole or as it was before
    :raises InputError: if the detector cannot be fitted, gives what is no number, or the folder
        cannot be written
    """
    name = wanted.detector
    detector, fitted = None, 0
    if name is not None:
        detector, fitted = _fitted(model, wanted, training, progress)
    outputs, scores = _scored(model, name, detector, held_out, progress)
    of_features = isinstance(detector, FeaturesDetector)
    with input_errors():  # of too few images, other labels, logits or scores that are NaN
        found = Calibration.fit(
            outputs.logits, outputs.labels, name or score_of_logits(model), wanted.alpha, scores,
            outputs.features if of_features else None,
        )  # fmt: skip
    found = replace(found, guarantee=wanted.guarantee)
    network = model.parts.model
    for doubt in doubts_of(network, found, outputs.logits, outputs.labels, scores=scores):
        warn(progress, doubt)
    about = None
    if name is not None and detector is not None:
        digest = training.digest if training is not None and fitted else None
        about = Saved(
            name, {}, model.weights, detector.get_hyperparameters(), fitted or None, digest
        )
    with shown(progress, "writing the model folder"):
        _write(model, folder, found, detector, about)
    return found


def splits_of(source: str | None) -> Path | None:
    """Where a training has recorded what each image was for, beside the model that it has made."""
    folder = None if source is None else model_folder_of(source)
    return None if folder is None else folder.parent / "splits.csv"


def score_of_logits(model: Model) -> str:
    """What scores a model without a detector: what its head's paper names; the energy of a softmax
    classifier."""
    return str(getattr(model.parts.classifier, "score", "energy_score"))


def tell_if_no_file_holds(model: Model, name: str | None, progress: Progress) -> None:
    """Say before a detector is fitted that it can be part of no file."""
    if name is not None and model.preprocessing is not None:
        reason = obstacle_to_export(name, model.parts, model.preprocessing["input_size"])
        if reason is not None:
            warn(
                progress,
                f"{reason}. In Python isomax_adapters.pytorch_ood.load_detector has its scores",
            )


def _fitted(
    model: Model, wanted: Equipment, training: ModelBatches | None, progress: Progress
) -> tuple[Detector, int]:
    """The detector, and on how many images it was fitted."""
    name = wanted.detector
    assert name is not None
    detectors = detectors_for(model.parts, [name])
    given, own = wanted.hyperparameters or {}, detectors[name].get_hyperparameters()
    if unknown := sorted(set(given) - set(own)):
        raise InputError(
            f"{name} has no hyperparameter {', '.join(unknown)}; it has {', '.join(own) or 'none'}"
        )
    with input_errors():
        detectors[name].set_hyperparameters(**given)
    try:
        state_of(detectors[name])
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    torch.manual_seed(model.seed)
    count = 0
    if detectors[name].requires_fit:
        if training is None:
            raise InputError(f"{name} is fitted on training images; give a loader of them")
        keeper = training.keeper or OutputsInMemory()
        with shown(progress, f"fitting {name}", training.count) as advance:
            failed = fit(model.parts, detectors, training.loader, None, advance, keeper, model.seed)
        if failed:
            raise InputError(f"{name} cannot be fitted: {failed[name]}")
        kept = keeper.read()
        count = 0 if kept is None else len(kept.labels)
        if ridge := getattr(detectors[name], "ridge", 0.0):
            tell(
                progress,
                f"{name}: the covariance of {count} images is singular; {ridge:.3g}, a millionth "
                "of the mean variance, was added to each",
            )
        if doubt := doubt_of_fit(name, detectors[name]):
            warn(progress, doubt)
    if wanted.bank is None:
        return detectors[name], count
    try:
        return with_bank(detectors[name], wanted.bank), count
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _scored(
    model: Model,
    name: str | None,
    detector: Detector | None,
    held_out: ModelBatches,
    progress: Progress,
) -> tuple[Outputs, torch.Tensor | None]:
    detectors = {} if name is None or detector is None else {name: detector}
    doing = "calibrating on held-out images"
    with shown(progress, doing, held_out.count) as advance:
        outputs, scores, failed = score(
            model.parts, detectors, held_out.loader, advance, held_out.keeper, model.seed
        )
    if failed and name is not None:
        raise InputError(f"{name} cannot score: {failed[name]}")
    return outputs, None if name is None else scores[name]


def _write(
    model: Model, folder: Path, calibration: Calibration, detector: Any, about: Saved | None
) -> None:
    def detector_too(place: Path) -> None:
        if about is not None:
            save_detector(detector, about, place)

    save_model(
        model.parts.model, folder, model.class_names, dict(model.preprocessing or {}),
        calibration, model.decoding, detector_too,
    )  # fmt: skip
