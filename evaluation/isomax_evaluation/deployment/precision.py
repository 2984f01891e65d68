"""What an ONNX file of lower precision gives up: measured on the user's images, beside float32."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm.data
import torch

from isomax.calibration import RejectionThreshold
from isomax_adapters.onnx import export
from isomax_adapters.onnx.images import CALIBRATION_IMAGES, Labelled
from isomax_adapters.runtime import Scorer
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.classes import match_classes
from isomax_evaluation import data
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.preprocessing import preprocessing_of
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.detection.class_order import places_by_images
from isomax_evaluation.detection.testing.metrics import ood_metrics
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.files import as_list
from isomax_evaluation.output.progress import Progress, shown, tell

#: parts of a training's images that it has not seen -> what they are for
UNSEEN = {"validation": "selection", "calibration": "held_out"}


def export_and_measure(
    model_folder: Path,
    path: Path,
    precision: str,
    id: str,
    ood: Sequence[str],
    progress: Progress,
    reading: Reading = Reading(),
    test_images: int | None = None,
    calibration: str | None = None,
    class_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Export a model folder; say what its precision costs against float32.

    The ranges of ``int8`` are those of training images of ``id``, of which those that were held
    out are no part: what the threshold was calibrated on, nothing else reads. All files are
    measured on its test images.

    :param id: the model's classes: a folder or a name, see :mod:`isomax_evaluation.data`
    :param ood: OOD sets, as in :func:`isomax_evaluation.compare`
    :param test_images: use at most so many test images of each dataset
    :param calibration: ID images that the model has not seen, a folder with one subfolder per
        class: half of them, but as many as the threshold takes, calibrate the file, the others
        judge it. If not given, those of ``id`` that ``isomax train`` has held out do, or its
        validation set beside a test set; without any, a reduced file has the folder's threshold
        and no guarantee
    :param class_names: of a folder without any, in the order of the logits; if not given, the
        training images decide which of the usual orders it is
    :return: as :func:`measure`
    :raises InputError: if data cannot be used, before anything is exported
    """
    splits, root = data.open_splits(id, reading), reading.data_root
    training, known = splits.train, splits.test
    model: Any = load_model(model_folder)  # a timm model: more attributes than nn.Module has
    decoding = model.decoding
    names = _names_by_place(
        model, str(model_folder), training.decoded(decoding), class_names, progress
    )
    training, known = data.of_classes(training, names), data.of_classes(known, names)
    held = None if splits.held_out is None else data.of_classes(splits.held_out, names)
    if calibration is not None:
        held = data.open_of_classes(calibration, names, root)
    unknown = [data.open_images(name, "test", root).as_ood() for name in as_list(ood)]
    recorded: dict[str, Images] = {}
    if calibration is None:
        recorded = _recorded(model_folder, [training, *([] if held is None else [held])])
    parts = data.recorded_parts(model_folder.parent / "splits.csv", training)
    training = training.take([at for at, part in enumerate(parts) if part not in UNSEEN])
    places = np.linspace(0, len(training) - 1, min(len(training), CALIBRATION_IMAGES))
    training = training.take(places.round().astype(int))

    def read(*several: Images) -> list[Images]:
        decoded = [images.decoded(decoding) for images in several]
        return data.readable(decoded, reading.skip_bad_images, reading.workers, progress)

    limited = [data.at_most(images, test_images) for images in (known, *unknown)]
    training, known, *unknown = read(training, *limited)
    unseen: dict[str, Labelled] = {}
    if recorded:
        unseen = {
            UNSEEN[part]: _labelled(images)
            for part, images in zip(recorded, read(*recorded.values()), strict=True)
        }
    elif held is not None:
        (held,) = read(held)
        given = {"test": known, "calibration": held, "training": training}
        settled = data.settle(given, reading, data.table_of_copies(path), unknown)
        for note in settled.notes:
            tell(progress, note)
        known, held, training = (settled.parts[name] for name in given)
        unknown = settled.ood
        unseen = _unseen(held, model_folder)
    with tempfile.TemporaryDirectory() as scratch:
        task = progress.begin("exporting", None)
        files = {"fp32": Path(scratch) / "fp32.onnx", precision: path}
        for kind, file in files.items():
            ranges = (_source(training, i) for i in range(len(training)))
            labelled = {} if kind == "fp32" else unseen
            ranges_of = ranges if kind == "int8" else None
            export(model_folder, file, kind, ranges_of, class_names=names, **labelled)
        progress.end(task)
        count = len(files) * sum(map(len, (known, *unknown)))
        with shown(progress, "measuring", count) as advance:
            table = measure(files, known, unknown, advance)
    return table


def measure(
    files: Mapping[str, Path],
    known: Images,
    unknown: Sequence[Images],
    advance: Callable[[int], None],
) -> pd.DataFrame:
    """Accuracy, AUROC and threshold of exported files on the same images.

    :param files: precision -> file; the first one is what the others are compared with
    :param known: ID images
    :param unknown: OOD sets
    :param advance: called with the number of images done since the last call
    :return: per file: size in MB; shares of ID images that are labelled right, that have the first
        file's label and that are rejected (``false_alarms``); the file's threshold, and the one
        that these ID images ask for; AUROC by OOD set
    """
    rows: list[dict[str, Any]] = []
    labels = np.empty(0)
    for precision, file in files.items():
        scorer = Scorer(file)
        found, scores, rejected = _outputs(scorer, known, advance)
        labels = labels if rows else found
        row = {
            "precision": precision,
            "size": file.stat().st_size / 1e6,
            "accuracy": float((found == known.labels).mean()),
            "same_labels": float((found == labels).mean()),
            "alpha": scorer.alpha,
            "false_alarms": float(rejected.mean()),
            "threshold": scorer.threshold,
            "fitted_threshold": _fitted(scores, scorer.alpha),
        }
        for images in unknown:
            metrics = ood_metrics(scores, _outputs(scorer, images, advance)[1])
            row[f"AUROC/{images.name}"] = metrics["AUROC"]
        rows.append(row)
    return pd.DataFrame(rows)


def _names_by_place(
    model: Any,
    name: str,
    images: Images,
    class_names: Sequence[str] | None,
    progress: Progress,
) -> tuple[str, ...]:
    """The classes of the ID data in the order of the model's logits.

    :raises InputError: if they are not the model's, or it does not know its classes and the images
        do not tell
    """
    named, classes = images.class_names, model.num_classes
    with input_errors():
        places = match_classes(model, classes, name, named, class_names)
    if places is None:
        transform = timm.data.create_transform(**preprocessing_of(model))
        places = places_by_images(
            lambda batch: model(batch).argmax(dim=1), images, transform, name, progress
        )
    if len(places) < classes:
        raise InputError(
            f"{name} has {classes} classes, and the ID data {len(places)} of them "
            f"({', '.join(named[:5])}, ...): give the data it was trained on"
        )
    return tuple(named[places.index(at)] for at in range(classes))


def _unseen(held: Images, model_folder: Path) -> dict[str, Labelled]:
    """What judges a reduced file, if there are enough, and what calibrates it."""
    folders = load_calibration(model_folder)
    if folders is None:
        return {}  # which export says
    divided = data.split_training(held, held, folders.alpha)
    parts = {"selection": divided.selection, "held_out": divided.calibration}
    return {name: _labelled(part) for name, part in parts.items() if part is not None}


def _labelled(images: Images) -> Labelled:
    return Labelled([_source(images, i) for i in range(len(images))], images.labels.tolist())


def _recorded(model_folder: Path, sets: Sequence[Images]) -> dict[str, Images]:
    """What a training held out of these images, by its part; nothing if too few calibrate."""
    found: dict[str, Images] = {}
    for images in sets:
        parts = data.recorded_parts(model_folder.parent / "splits.csv", images)
        for part in UNSEEN:
            if places := [at for at, one in enumerate(parts) if one == part]:
                found[part] = images.take(places)
    folders = load_calibration(model_folder)
    if folders is None or "calibration" not in found:
        return {}
    enough = len(found["calibration"]) >= RejectionThreshold(folders.alpha).samples_needed
    return found if enough else {}


def _fitted(scores: torch.Tensor, alpha: float) -> float:
    threshold = RejectionThreshold(alpha)
    if len(scores) < threshold.samples_needed:
        return float("nan")
    return float(threshold.fit(scores).value)  # type: ignore[arg-type]


def _outputs(
    scorer: Scorer, images: Images, advance: Callable[[int], None]
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Labels, scores and verdicts."""
    labels, scores, rejected = [], [], []
    for result in scorer.stream(_source(images, position) for position in range(len(images))):
        if result.error:
            raise InputError(f"{result.source} cannot be read: {result.error}")
        labels.append(result.label)
        scores.append(result.score)
        rejected.append(result.is_ood)
        advance(1)
    return np.array(labels), torch.tensor(scores), np.array(rejected)


def _source(images: Images, position: int) -> str | np.ndarray:
    """What the Scorer takes: the file, so that its threads decode it, where there is one."""
    if images.paths is None:
        return images.decoding.array(images.image(position))
    return images.paths[int(images.indices[position])]
