"""A model folder as one ONNX file: raw pixels in, label, score and verdict out.

In stages: the folder is opened; its network exported and, in another precision than float32,
reduced; the detector put behind it; all of it calibrated on the scores of its own graph; assembled
with preprocessing and verdict; and verified.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from isomax.calibration import Calibration
from isomax_adapters.onnx.graph import assemble
from isomax_adapters.onnx.images import (
    ImageSource,
    Labelled,
    as_network_gets_them,
    calibration_sources,
    check_labelled,
)
from isomax_adapters.onnx.network import (
    Scored,
    export_network,
    with_detector,
    with_maps,
    with_score,
)
from isomax_adapters.onnx.opening import Opened, open_folder
from isomax_adapters.onnx.precision import join, split, to_fp16, to_int8
from isomax_adapters.onnx.recalibrating import calibrated_on, with_own_scores
from isomax_adapters.onnx.verifying import ExportError, random_batches, verify
from isomax_adapters.pytorch_ood import kind_of
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.runtime.metadata import METADATA_FORMAT
from isomax_adapters.timm.attaching import classifier_names

VERIFIED_IMAGES = 64  # of the calibration images
COMPARED_IMAGES = 16  # of these: what runtimes differ by is looked for on them


def export(
    model_folder: str | Path,
    path: str | Path,
    precision: str = "fp32",
    calibration_images: Iterable[ImageSource] | None = None,
    selection: Labelled | None = None,
    held_out: Labelled | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Export a model folder with its preprocessing, score and threshold, and verify the file.

    The file takes ``images``, uint8 ``[N, H, W, 3]`` RGB of any size (of 1 or 4 channels for models
    of that many), and gives ``label``, ``confidence``, ``score``, ``is_ood``, ``logits``,
    ``probabilities`` and ``p_value``. It holds everything it needs; class names, threshold,
    calibration scores, precision, preprocessing and provenance are JSON in its metadata under
    ``isomax``.

    Before the file appears, it is verified part by part. Its pixels must be those of timm's
    transform, on random images of several sizes, but for one grey level here and there. From the
    same pixels, it and the PyTorch model must come to the same logits and scores: in ``fp32`` to
    1e-3 (of the largest logit and of the score, where these exceed 1), in ``fp16`` to
    ``TOLERANCES``. An ``int8`` file, and an ``fp16`` one with ``selection``, is judged by what it
    loses: accuracy, margin and the order of the scores, see
    :func:`isomax_adapters.onnx.judging.why_another_model`; the error names the layers that suffer
    most. Label, probabilities, score, verdict and p-value must follow from the logits, on both
    sides of the threshold.

    Grey images of more than 8 bits are read in the range that ``grey_range`` in the folder's
    ``config.json`` says, if it says one.

    The calibration scores are those that the file's own graph computes, of the logits or features
    of the calibration images that the folder keeps; for detectors of feature maps, which it does
    not keep, they are PyTorch's, as ``scored_by`` in the metadata says. By how much scores differ
    between ways to run the file is measured, and twice that is the ``tolerance`` within which they
    tie, see :func:`isomax.calibration.p_values`.

    A reduced file is another model. With ``held_out``, its temperature and p-values are its own,
    and the guarantee is the folder's; without, it is not established.

    :param model_folder: as :func:`isomax_adapters.timm.save_model` writes it, calibrated
    :param path: the file to write
    :param precision: of the backbone's weights and arithmetic: ``fp32``; ``fp16``, half of the
        weights' bytes; ``int8``, a quarter, quantised statically. Preprocessing, head and score
        stay in float32
    :param calibration_images: needed for ``int8`` and only there: ID images, such as training
        images, as paths or uint8 arrays ``[H, W, C]``; at least 32, of which at most 256
        are used, evenly spaced
    :param selection: what a reduced file is judged on; if not given, it is judged on the
        calibration images, without labels
    :param held_out: what a reduced file is calibrated on; images that nothing else was done with
    :param class_names: of a folder that has none, in the order of the logits; if not given, the
        numbers of the logits
    :return: the path
    :raises ExportError: if torch cannot export the model, or the file disagrees with it
    :raises InputError: if the folder is no calibrated model folder, its preprocessing cannot be
        exported, or precision and images are not as described
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of the file to write")
    sources = calibration_sources(precision, calibration_images)
    opened = open_folder(Path(model_folder), precision, class_names)
    check_labelled(
        precision, selection, held_out, opened.model.num_classes, opened.calibration.alpha
    )
    pixels = list(as_network_gets_them(map(opened.decode, sources), opened.config))
    network = scored_network(opened, precision, pixels)
    calibration = _calibrated(opened, network, precision, pixels, held_out)
    exported = _assembled(opened, network, precision, calibration)
    judged_on = selection.images if selection else sources[:: _step(sources, VERIFIED_IMAGES)]
    place = Path(os.path.realpath(path))  # where a symbolic link leads
    unfinished = place.with_name(f".{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(exported, str(unfinished))
        verify(
            exported, unfinished, opened.outputs, opened.config, calibration, precision,
            (opened.decode(source)[None] for source in judged_on),
            selection.labels if selection else None,
        )  # fmt: skip
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def scored_network(opened: Opened, precision: str, pixels: list[np.ndarray]) -> Scored:
    """The network in its precision, with what scores it."""
    detector, classifiers = opened.detector, classifier_names(opened.model)
    if detector is not None and kind_of(detector) == "feature_maps":
        network = with_maps(opened.parts, opened.size)
    else:
        network = export_network(opened.model, opened.size)
    if precision != "fp32":
        network = _reduced(network, classifiers, precision, pixels)
    score = opened.calibration.score
    if detector is None:
        return with_score(network, score, opened.model.num_classes)
    return with_detector(network, detector, score, opened.parts, classifiers)


def _reduced(
    network: onnx.ModelProto, classifiers: list[str], precision: str, pixels: list[np.ndarray]
) -> onnx.ModelProto:
    try:
        backbone, head = split(network, classifiers)
    except InputError as error:
        raise ExportError(str(error)) from error
    return join(to_fp16(backbone) if precision == "fp16" else to_int8(backbone, pixels), head)


def _calibrated(
    opened: Opened,
    network: Scored,
    precision: str,
    pixels: list[np.ndarray],
    held_out: Labelled | None,
) -> Calibration:
    """The calibration of the file's own scores, and how far these may differ between runtimes."""
    found, expected = opened.calibration, None
    if held_out is not None:
        given = as_network_gets_them(map(opened.decode, held_out.images), opened.config)
        own = calibrated_on(given, held_out, network, found)
        found = replace(own, guarantee=found.guarantee)
    elif precision != "fp32":
        found = replace(found, guarantee="not established")
    if pixels:
        some = np.concatenate(pixels[:: _step(pixels, COMPARED_IMAGES)])
    else:
        images = (image for batch in random_batches(opened.config) for image in batch)
        some = np.concatenate(list(as_network_gets_them(images, opened.config)))
    if precision == "fp32":
        expected = opened.outputs(some)[1:]
    return with_own_scores(found, network, some, expected)


def _assembled(
    opened: Opened, network: Scored, precision: str, calibration: Calibration
) -> onnx.ModelProto:
    metadata: dict[str, Any] = {
        "format": METADATA_FORMAT,
        "class_names": opened.class_names,
        "precision": precision,
        "preprocessing": opened.config | opened.decoding.options,
        "scored_by": "file" if network.kind in calibration.outputs else "PyTorch",
        "provenance": {
            "architecture": opened.model.pretrained_cfg.get("architecture"),
            # Pillow's too: what it makes of a tall image depends on it
            **{name: version(name) for name in ("isomax", "timm", "torch", "onnx", "pillow")},
        },
    }
    try:
        return assemble(network.whole, opened.config, metadata | calibration.to_dict())
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"what torch {torch.__version__} made of this model is no valid ONNX, which a newer "
            f"torch may mend: {str(error).strip().splitlines()[0]}"
        ) from error


def _step(images: list[Any], most: int) -> int:
    return max(1, len(images) // most)
