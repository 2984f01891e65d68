"""A trained classifier becomes one that says "unknown": ``isomax calibrate``, and the same for a
model in memory."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm.data
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from isomax import posthoc
from isomax.calibration import RejectionThreshold
from isomax_adapters.pytorch_ood import Parts, check_names, why_not
from isomax_adapters.runtime.decoding import RGB
from isomax_adapters.timm.checkpoints import check_finite
from isomax_adapters.timm.classes import checked_names
from isomax_adapters.timm.folder import check_place
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation import data
from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.loading import decoding_errors, loader_of
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.data.splitting import split_for_calibration
from isomax_evaluation.data.torch_datasets import check_tensor
from isomax_evaluation.deployment.equipping import (
    Equipment,
    ModelBatches,
    equip,
    splits_of,
    tell_if_no_file_holds,
)
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import GivenModel, open_given
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.files import read_json
from isomax_evaluation.output.folders import check_outside
from isomax_evaluation.output.progress import LINES, Progress, tell, warn

POST_HOC = {head: detector.__name__ for head, detector in posthoc.POST_HOC.items()}

ON_ANY_HEAD = ("KNN", "Mahalanobis", "MahalanobisPP")

Batches = Iterable[tuple[Tensor, Tensor]]


def calibrate(
    source: str,
    id: str,
    output: str | Path,
    detector: str | None = None,
    alpha: float = 0.05,
    calibration: str | None = None,
    fit_images: int | None = None,
    bank: int | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    reading: Reading = Reading(),
    progress: Progress = LINES,
) -> Path:
    """Give a trained classifier a detector and a threshold; write it as a model folder.

    The detector is fitted on ID training images, temperature and threshold on images that neither
    model nor detector has seen, see
    :func:`~isomax_evaluation.data.splitting.split_for_calibration`.

    :param source: a model, as :func:`isomax_adapters.timm.sources.open_model` takes it; one of a
        comparison has the hyperparameters that were chosen there
    :param id: its classes: a folder or a name, see :mod:`isomax_evaluation.data`
    :param output: the model folder to write
    :param detector: one of ``isomax_adapters.pytorch_ood.NAMES``, or ``isomax``, ``isomax+``,
        ``dismax`` for a head at the class means of the features; if not given, the score that its
        head's paper names, and the energy of a softmax classifier
    :param alpha: false-alarm rate of the threshold
    :param calibration: a folder of held-out images of the classes
    :param fit_images: fit on at most so many training images of each class
    :param bank: compare with at most so many of them, with detectors that compare with each
    :param hyperparameters: the detector's, other than its own or those chosen by a comparison;
        ``{"epochs": 20}`` trains a head that ``isomax+`` puts at the class means
    :param class_names: of a model that has none, in the order of its logits; if not given, the
        training images decide which of the usual orders it is
    :param reading: how images are found and read
    :param progress: where it reports to; lines on the error stream if not given
    :return: the model folder
    :raises InputError: if anything given cannot be used, before anything is written
    """
    output = Path(os.path.expanduser(output))
    _check(alpha, output)
    splits = data.open_splits(id, reading)
    check_outside(output, id)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with decoding_errors():
        for line in splits.found:
            tell(progress, line)
        model = open_given(
            GivenModel("the model", 0, source), splits.train, {"img_size": image_size}, RGB,
            tensors=False, device=accelerator.device, progress=progress, class_names=class_names,
            in_given_order=reading.class_map is not None,
        )  # fmt: skip
        name = _named(model, detector)
        tell_if_no_file_holds(model, name, progress)
        names, given = splits.train.class_names, None
        if calibration is not None:
            given = data.open_of_classes(calibration, names, reading.data_root)
        held = split_for_calibration(splits.train, splits.held_out, splits_of(source), alpha, given)
        parts = (held.calibration, data.limit_per_class(held.training, fit_images))
        decoded = [images.decoded(model.decoding) for images in parts]
        read = data.readable(decoded, reading.skip_bad_images, reading.workers, progress)
        settled = data.settle(
            dict(zip(("calibration", "training"), read, strict=True)),
            reading,
            data.table_of_copies(output),
            drawn="training" if held.guarantee == "unknown" else "",
        )
        chosen, training = settled.parts["calibration"], settled.parts["training"]
        for note in (*held.notes, *settled.notes):
            warn(progress, note)
        wanted = Equipment(
            name, alpha, held.guarantee, bank, _chosen(source, name) | dict(hyperparameters or {})
        )
        to_fit, unseen = (
            ModelBatches(loader_of(model.transform, reading.workers, images), digest=digest(images))
            for images in (training, chosen)
        )
        equip(model, wanted, to_fit, unseen, output, progress)
    return output


def calibrate_model(
    model: nn.Module | Parts,
    held_out: Batches,
    output: str | Path,
    class_names: Sequence[str] | None = None,
    detector: str | None = None,
    training: Batches | None = None,
    alpha: float = 0.05,
    bank: int | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    data_config: dict[str, Any] | None = None,
    progress: Progress = LINES,
) -> Path:
    """The same for a model in memory, of a training loop of one's own.

    The loaders' images are prepared as ``timm.data.create_transform(**data_config, is_training=
    False)`` prepares them: that is what an exported file does to pixels, and a threshold of images
    that were prepared otherwise promises nothing.

    :param model: a timm model, with or without one of our heads; left in the mode that it is in
    :param held_out: a loader of (images, labels) of the model's classes that it was not trained
        on, nor chosen by
    :param output: the model folder to write
    :param class_names: in the order of the logits; their numbers if not given
    :param detector: as in :func:`calibrate`
    :param training: a loader of training images, for detectors that are fitted
    :param alpha: false-alarm rate of the threshold
    :param bank: compare with at most so many training images, with detectors that compare with each
    :param hyperparameters: the detector's, other than its own
    :param data_config: preprocessing; ``timm.data.resolve_model_data_config(model)`` if not given
    :return: the model folder, for ``isomax_adapters.onnx.export``
    :raises InputError: if anything given cannot be used, before anything is written
    """
    output = Path(os.path.expanduser(output))
    _check(alpha, output)
    network: Any = model.model if isinstance(model, Parts) else model
    if not hasattr(network, "pretrained_cfg"):
        raise InputError(
            f"{type(network).__name__} is no timm model; a model folder is of timm's architectures"
        )
    parts = model if isinstance(model, Parts) else Parts(model)
    check_finite(network.state_dict(), "the model")
    config = dict(data_config or timm.data.resolve_model_data_config(network))
    names_given = range(parts.num_classes) if class_names is None else class_names
    with input_errors():
        names = tuple(checked_names(names_given, parts.num_classes))
    for what, loader in (("held_out", held_out), ("training", training)):
        if loader is not None:
            _check_preprocessing(what, loader, config)
    was_training = network.training
    network.eval()
    given = Model(type(network).__name__, 0, parts, names, config)
    fed = None if training is None else ModelBatches(training)
    try:
        name = _named(given, detector)
        tell_if_no_file_holds(given, name, progress)
        wanted = Equipment(name, alpha, bank=bank, hyperparameters=hyperparameters)
        equip(given, wanted, fed, ModelBatches(held_out), output, progress)
    finally:
        network.train(was_training)
    return output


def _check(alpha: float, output: Path) -> None:
    with input_errors():
        RejectionThreshold(alpha)
    check_place(output)


def _named(model: Model, detector: str | None) -> str | None:
    """The detector that is wanted; ``None`` for a score of the logits.

    :raises InputError: if there is no such detector, or it cannot work on the model
    """
    if detector is None:
        return None
    name = POST_HOC.get(detector, detector)
    try:
        check_names([name], POST_HOC)
    except InputError as error:
        raise InputError(f"{error}; `isomax list detectors` says which a file can hold") from error
    reasons = why_not(model.parts, [name, *ON_ANY_HEAD])
    if reason := reasons.get(name):
        others = [other for other in ON_ANY_HEAD if other not in reasons]
        raise InputError(
            f"{name} cannot work on this model: {reason}"
            + (f"; {', '.join(others)} can" if others else "")
        )
    return name


def _chosen(source: str, name: str | None) -> dict[str, Any]:
    """Hyperparameters that a comparison has chosen for a detector on this model."""
    folder = model_folder_of(source)
    path = None if folder is None else folder.parent / "hyperparameters.json"
    if path is None or not path.is_file():
        return {}
    values: dict[str, Any] = read_json(path).get(name, {})
    return values


def _check_preprocessing(what: str, loader: Batches, config: dict[str, Any]) -> None:
    """Refuse images that are visibly not prepared as a file would prepare them.

    :raises InputError: if their normalisation or size is another one
    """
    transform = getattr(getattr(loader, "dataset", None), "transform", None)
    steps = getattr(transform, "transforms", [])
    for step in steps:
        for key in ("mean", "std"):
            own = getattr(step, key, None)
            if own is None or type(step).__name__ != "Normalize":
                continue
            own = torch.as_tensor(own, dtype=torch.float64).flatten()
            wanted = torch.tensor(config[key], dtype=torch.float64)
            if own.shape != wanted.shape or not torch.allclose(own, wanted, atol=1e-3):
                raise InputError(
                    f"{what}: its images are normalised with the {key} {own.tolist()}, a file "
                    f"would use {list(config[key])}; give the same data_config to both"
                )
    if iter(loader) is loader:
        raise InputError(f"{what} is used up after one pass; give a loader, or a list of batches")
    batch = next(iter(loader), None)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(
            f"{what} gives {'nothing' if batch is None else type(batch).__name__}; expected "
            "batches of (images, labels)"
        )
    images = batch[0]
    if tuple(images.shape[1:]) != tuple(config["input_size"]):
        raise InputError(
            f"{what}: its images are {tuple(images.shape[1:])}, a file would make them "
            f"{tuple(config['input_size'])}; give data_config with their input_size"
        )
    check_tensor(images[0], what)
