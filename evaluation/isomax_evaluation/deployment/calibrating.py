"""A trained classifier becomes one that says "unknown": detector, temperature and threshold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pytorch_ood.api import Detector
from rich.progress import Progress

from isomax.calibration import Calibration, RejectionThreshold
from isomax_adapters.pytorch_ood import (
    NAMES,
    Saved,
    detectors_for,
    save_detector,
    why_not,
    with_bank,
)
from isomax_adapters.timm import save_model
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation import data
from isomax_evaluation.data import Images, Splits
from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.loading import decoding_errors, loader_of
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import Given, open_given
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.extraction.doubts import doubts_of
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.folders import check_outside
from isomax_evaluation.output.progress import progress_bar, shown, tell, warn

POST_HOC = {
    "isomax": "PostHocIsoMax",
    "isomax+": "PostHocIsoMaxPlus",
    "dismax": "PostHocDisMax",
}
SHARE = 0.1  # of the training images, where no others are there to calibrate on


@dataclass(frozen=True)
class Held:
    """What a detector is fitted and calibrated on."""

    training: Images
    calibration: Images
    guarantee: str
    note: str = ""  #: what whoever relies on it should read


def calibrate(
    source: str,
    id: str,
    output: str | Path,
    detector: str | None = None,
    alpha: float = 0.05,
    calibration: str | None = None,
    fit_images: int | None = None,
    bank: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    root: str | None = None,
    group_by: str | None = None,
    class_map: str | None = None,
    skip_bad_images: bool = False,
    workers: int = 2,
) -> Path:
    """Give a trained classifier a detector and a threshold; write it as a model folder.

    The detector is fitted on ID training images, temperature and threshold on images that neither
    model nor detector has seen: ``calibration``; else those that ``isomax train`` has held out to
    calibrate on; else the set's own ``val`` beside its test set. Where there are none of these, a
    share of the training images is kept from the detector, but nobody can know whether the model
    was trained on them.

    :param source: a model, as :func:`isomax_adapters.timm.sources.open_model` takes it
    :param id: its classes: a folder or a name, see :mod:`isomax_evaluation.data`
    :param output: the model folder to write
    :param detector: one of ``isomax_adapters.pytorch_ood.NAMES``, or ``isomax``, ``isomax+``,
        ``dismax`` for a head at the class means of the features; if not given, the score that its
        head's paper names, and the energy of a softmax classifier
    :param alpha: false-alarm rate of the threshold
    :param calibration: a folder of held-out images of the classes
    :param fit_images: fit on at most so many training images of each class
    :param bank: compare with at most so many of them, with detectors that compare with each
    :return: the model folder
    :raises InputError: if anything given cannot be used, before anything is written
    """
    splits = data.open_splits(id, root, group_by, class_map)
    check_outside(Path(output), id)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with decoding_errors(), progress_bar() as progress:
        for line in splits.found:
            tell(progress, line)
        model = open_given(
            Given("the model", 0, source), splits.train.class_names, {"img_size": image_size}, None,
            tensors=False, device=accelerator.device,
        )  # fmt: skip
        name = _named(model, detector)
        held = _held_out(splits, source, calibration, root, RejectionThreshold(alpha))
        training = data.limit_per_class(held.training, fit_images)
        training, chosen = (
            data.readable(images.decoded(model.decoding), skip_bad_images, workers, progress)
            for images in (training, held.calibration)
        )
        data.check_apart(train=training, calibration=chosen)
        if held.note:
            warn(progress, held.note)
        fitted, scores, logits, labels = _scored(
            model, name, training, chosen, bank, workers, progress
        )
        found = Calibration.fit(
            logits, labels, _score_name(model, name), alpha, None if name is None else scores
        )
        found = replace(found, guarantee=held.guarantee)
        own = None if name is None else scores
        for doubt in doubts_of(model.parts.model, found, logits, labels, scores=own):
            warn(progress, doubt)
        task = progress.add_task("writing the model folder", total=None)
        folder = _write(model, Path(output), found, name, fitted, training)
        progress.remove_task(task)
    return folder


def _named(model: Model, detector: str | None) -> str | None:
    """The detector that is wanted; ``None`` for a score of the logits.

    :raises InputError: if there is no such detector, or it cannot work on the model
    """
    if detector is None:
        return None
    name = POST_HOC.get(detector, detector)
    if name not in NAMES:
        known = ", ".join([*POST_HOC, *NAMES])
        raise InputError(f"unknown detector {detector}; choose from {known}")
    if reason := why_not(model.parts, [name]).get(name):
        raise InputError(f"{name} cannot work on this model: {reason}")
    return name


def _score_name(model: Model, name: str | None) -> str:
    if name is not None:
        return name
    head = model.parts.classifier
    return str(getattr(head, "score", "energy_score"))


def _held_out(
    splits: Splits,
    source: str,
    calibration: str | None,
    root: str | None,
    threshold: RejectionThreshold,
) -> Held:
    """Images to fit on, and images that nothing has seen.

    :raises InputError: if there are too few
    """
    needed = threshold.samples_needed
    note, guarantee = "", "established"
    recorded = _recorded(source, splits.train)
    if calibration is not None:
        held = data.open_images(calibration, "test", root)
        if held.class_names != splits.train.class_names:
            raise InputError(
                f"the classes of {calibration} are {', '.join(held.class_names[:5])}, ...; those "
                f"of the training images are {', '.join(splits.train.class_names[:5])}, ..."
            )
        training = splits.train
    elif recorded is not None:
        training, held = recorded
    elif splits.held_out is not None:
        training, held = splits.train, splits.held_out
    else:
        divided = data.divide(splits.train, None, needed, SHARE, seed=0)
        training, held, guarantee = divided.training, divided.calibration, "unknown"
        note = (
            f"{len(held)} training images were kept from the detector to calibrate on; if the "
            "model was trained on them, more than alpha of fresh images will be rejected: the "
            "guarantee is unknown. Give images that it has not seen, in val beside test, or with "
            "--calibration FOLDER"
        )
    if len(held) < needed:
        raise InputError(
            f"the threshold takes {needed} images that the model has not seen, and there are "
            f"{len(held)}; give more, or choose a larger alpha"
        )
    return Held(training, held, guarantee, note)


def _recorded(source: str, images: Images) -> tuple[Images, Images] | None:
    """What a training has recorded of these images: those that it trained on, and those that it
    held out to calibrate on; ``None`` if it has recorded nothing, or other images."""
    folder = model_folder_of(source)
    if folder is None:
        return None
    found = data.recorded_parts(folder.parent / "splits.csv", images)
    held = [at for at, part in enumerate(found) if part == "calibration"]
    trained = [at for at, part in enumerate(found) if part == "train"]
    return (images.take(trained), images.take(held)) if held and trained else None


def _scored(
    model: Model,
    name: str | None,
    training: Images,
    chosen: Images,
    bank: int | None,
    workers: int,
    progress: Progress,
) -> tuple[Detector | None, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fitted detector; scores, logits and labels of the images that calibrate.

    :raises InputError: if the detector cannot be fitted, or gives what is no number
    """
    detectors: Mapping[str, Detector] = {}
    if name is not None:
        detectors = detectors_for(model.parts, [name])
        torch.manual_seed(0)
        if detectors[name].requires_fit:
            with shown(progress, f"fitting {name}", len(training)) as advance:
                loader = loader_of(model.transform, workers, training)
                failed = fit(model.parts, detectors, loader, advance=advance, seed=0)
            if failed:
                raise InputError(f"{name} cannot be fitted: {failed[name]}")
        if bank is not None:
            try:
                detectors = {name: with_bank(detectors[name], bank)}
            except ValueError as error:
                raise InputError(f"{name}: {error}") from error
    with shown(progress, f"calibrating on {len(chosen)} images", len(chosen)) as advance:
        loader = loader_of(model.transform, workers, chosen)
        outputs, scores, failed = score(model.parts, detectors, loader, advance, seed=0)
    if failed and name is not None:
        raise InputError(f"{name} cannot score: {failed[name]}")
    fitted = None if name is None else detectors[name]
    found = torch.empty(0) if name is None else scores[name]
    return fitted, found, outputs.logits, outputs.labels


def _write(
    model: Model,
    folder: Path,
    calibration: Calibration,
    name: str | None,
    detector: Any,
    training: Images,
) -> Path:
    try:
        save_model(
            model.parts.model, folder, model.class_names, dict(model.preprocessing or {}),
            calibration, model.grey_range,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    if name is not None:
        fitted = detector.requires_fit
        saved = Saved(
            name,
            {},
            model.weights,
            detector.get_hyperparameters(),
            len(training) if fitted else None,
            digest(training) if fitted else None,
        )
        save_detector(detector, saved, folder)
    return folder
