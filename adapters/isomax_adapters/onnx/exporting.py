"""A model folder as one ONNX file: raw pixels in, label, score and verdict out."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm.data
import torch
from pytorch_ood.api import Detector

from isomax.calibration import Calibration, RejectionThreshold
from isomax.functional import SCORES
from isomax_adapters.onnx.graph import assemble, preprocessing
from isomax_adapters.onnx.network import export_network, with_detector, with_maps
from isomax_adapters.onnx.precision import PRECISIONS, join, split, to_fp16, to_int8
from isomax_adapters.onnx.scorers import kind_of
from isomax_adapters.onnx.verifying import ExportError, verify
from isomax_adapters.pytorch_ood import Parts, load_detector, read_detector
from isomax_adapters.runtime.decoding import Decoding, from_array, open_image
from isomax_adapters.runtime.metadata import METADATA_FORMAT
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.attaching import classifier_names

CALIBRATION_IMAGES = 256  # more of them hardly move the ranges of the activations
FEWEST_CALIBRATION_IMAGES = 32  # with fewer, the ranges are too narrow for other images
VERIFIED_IMAGES = 64  # of the calibration images

ImageSource = str | os.PathLike | np.ndarray


@dataclass(frozen=True)
class Labelled:
    """ID images that the model was not trained on, and their classes."""

    images: Sequence[ImageSource]  #: paths or uint8 arrays ``[H, W, C]``
    labels: Sequence[int]


def export(
    model_folder: str | Path,
    path: str | Path,
    precision: str = "fp32",
    calibration_images: Iterable[ImageSource] | None = None,
    selection: Labelled | None = None,
    held_out: Labelled | None = None,
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

    The false-alarm rate of the folder's threshold is not that of a reduced file, whose scores are
    others. With ``held_out``, temperature, threshold and p-values are the reduced file's own, and
    the guarantee is the folder's; without, they are the folder's, and it is not established.

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
    :return: the path
    :raises ExportError: if torch cannot export the model, or the file disagrees with it
    :raises ValueError: if the folder is no calibrated model folder, its preprocessing cannot be
        exported, or precision and images are not as described
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of the file to write")
    sources = _calibration_sources(precision, calibration_images)
    model: Any = load_model(model_folder)  # a timm model: more attributes than nn.Module has
    calibration = load_calibration(model_folder)
    if calibration is None:
        raise ValueError(
            f"{model_folder} is not calibrated, so there is no threshold; calibrate it with "
            "isomax.calibration.Calibration.fit and isomax_adapters.timm.save_calibration"
        )
    _check_labelled(precision, selection, held_out, model.num_classes, calibration.alpha)
    config = timm.data.resolve_model_data_config(model)
    decode = partial(_decoded, decoding=model.decoding)
    names = model.pretrained_cfg.get("label_names") or range(model.num_classes)
    metadata = {
        "format": METADATA_FORMAT,
        "class_names": [str(name) for name in names],
        "precision": precision,
        "preprocessing": config | model.decoding.options,
        "provenance": {
            "architecture": model.pretrained_cfg.get("architecture"),
            # Pillow's too: what it makes of a tall image depends on it
            **{name: version(name) for name in ("isomax", "timm", "torch", "onnx", "pillow")},
        },
    }
    pixels = _preprocessed(map(decode, sources), config)
    parts, size = Parts(model), tuple(config["input_size"])
    detector = _detector_of(Path(model_folder), parts, calibration, precision)
    if detector is not None and kind_of(detector) == "feature_maps":
        network = with_maps(parts, size)
    else:
        network = export_network(model, size)
    if precision != "fp32":
        network = _reduced(network, classifier_names(model), precision, pixels)
    if detector is not None:
        network = with_detector(
            network, detector, calibration.score, parts, classifier_names(model)
        )
    if precision != "fp32":
        if held_out is None:
            calibration = replace(calibration, guarantee="not established")
        else:
            reduced = _assembled(network, config, metadata | calibration.to_dict())
            logits, scores = _given_by(reduced, config, map(decode, held_out.images))
            classes = torch.tensor(held_out.labels)
            calibration = replace(
                Calibration.fit(logits, classes, calibration.score, calibration.alpha, scores),
                guarantee=calibration.guarantee,
            )
    exported = _assembled(network, config, metadata | calibration.to_dict())
    place = Path(os.path.realpath(path))  # where a symbolic link leads
    unfinished = place.with_name(f".{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(exported, str(unfinished))
        some = sources[:: max(1, len(sources) // VERIFIED_IMAGES)]
        images = (decode(source)[None] for source in (selection.images if selection else some))
        labels = selection.labels if selection else None
        verify(
            exported, unfinished, model, config, calibration, precision, images, labels,
            None if detector is None else detector.predict,
        )  # fmt: skip
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _assembled(
    network: onnx.ModelProto, config: dict[str, Any], metadata: dict[str, Any]
) -> onnx.ModelProto:
    try:
        return assemble(network, config, metadata)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"what torch {torch.__version__} made of this model is no valid ONNX, which a newer "
            f"torch may mend: {str(error).strip().splitlines()[0]}"
        ) from error


def _reduced(
    network: onnx.ModelProto, classifiers: list[str], precision: str, pixels: list[np.ndarray]
) -> onnx.ModelProto:
    try:
        backbone, head = split(network, classifiers)
    except ValueError as error:
        raise ExportError(str(error)) from error
    return join(to_fp16(backbone) if precision == "fp16" else to_int8(backbone, pixels), head)


def _detector_of(
    folder: Path, parts: Parts, calibration: Calibration, precision: str
) -> Detector | None:
    """The fitted detector of a model folder whose threshold is for its scores; ``None`` if it is
    for scores of the logits.

    :raises ValueError: if there is none for the threshold
    :raises ExportError: if it cannot go with this precision
    """
    if calibration.score in SCORES:
        return None
    detector = load_detector(folder, parts)
    saved = read_detector(folder)
    assert saved is not None
    if saved.name != calibration.score:
        raise ValueError(
            f"the threshold of {folder} is for {calibration.score}, and its detector is "
            f"{saved.name}; calibrate it again"
        )
    if precision != "fp32" and kind_of(detector) == "feature_maps":
        raise ExportError(
            f"{saved.name} scores feature maps, which a reduced backbone gives otherwise; export "
            f"it as fp32, or calibrate with {saved.name.removesuffix('-maps')}, of pooled features"
        )
    return detector


def _given_by(
    exported: onnx.ModelProto, config: dict[str, Any], images: Iterable[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and scores of images one by one, as a file gives them for what the runtime makes of
    the images."""
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    made = (to_size_of_graph(from_array(image), config)[None] for image in images)
    rows = [session.run(["logits", "score"], {"images": image}) for image in made]
    logits, scores = map(np.concatenate, zip(*rows, strict=True))
    return torch.from_numpy(logits), torch.from_numpy(scores)


def _check_labelled(
    precision: str,
    selection: Labelled | None,
    held_out: Labelled | None,
    classes: int,
    alpha: float,
) -> None:
    for name, given in (("selection", selection), ("held_out", held_out)):
        if given is None:
            continue
        if precision == "fp32":
            raise ValueError(
                f"{name} images are for fp16 and int8; fp32 keeps what the folder was calibrated on"
            )
        if len(given.images) != len(given.labels) or not len(given.images):
            raise ValueError(f"{name}: {len(given.images)} images and {len(given.labels)} labels")
        if min(given.labels) < 0 or max(given.labels) >= classes:
            raise ValueError(
                f"{name}: labels lie in [{min(given.labels)}, {max(given.labels)}]; expected "
                f"[0, {classes})"
            )
    needed = RejectionThreshold(alpha).samples_needed
    if held_out is not None and len(held_out.images) < needed:
        raise ValueError(
            f"{len(held_out.images)} held-out images are too few; alpha={alpha:g} takes {needed}"
        )


def _calibration_sources(precision: str, given: Iterable[ImageSource] | None) -> list[ImageSource]:
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if (precision == "int8") != (given is not None):
        raise ValueError(
            "int8 is calibrated on in-distribution images: pass some training images"
            if given is None
            else f"calibration images are for int8; {precision} takes none"
        )
    if given is None:
        return []
    if isinstance(given, (str, os.PathLike)):
        raise ValueError(f"calibration images are {given}; give a list of files, or of arrays")
    found = list(given)
    if not found:
        raise ValueError("there are no calibration images")
    if len(found) < FEWEST_CALIBRATION_IMAGES:
        raise ValueError(
            f"{len(found)} calibration images are too few; int8 takes at least "
            f"{FEWEST_CALIBRATION_IMAGES} to learn the ranges of the activations, and "
            f"{CALIBRATION_IMAGES} do best"
        )
    places = np.linspace(0, len(found) - 1, min(len(found), CALIBRATION_IMAGES))
    return [found[index] for index in places.round().astype(int)]


def _preprocessed(images: Iterable[np.ndarray], config: dict[str, Any]) -> list[np.ndarray]:
    """Batches of one image, as the network gets them in the exported file."""
    graph = preprocessing(config, opset=18, ir_version=10)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return [session.run(None, {"images": image[None]})[0] for image in images]


def _decoded(source: ImageSource, decoding: Decoding) -> np.ndarray:
    channels = decoding.channels
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != channels:
            raise ValueError(
                f"a calibration image is {source.dtype} of shape {source.shape}; expected uint8 "
                f"[H, W, {channels}]"
            )
        return source
    try:
        with open_image(source) as image:
            return decoding.array(image)
    except Exception as error:  # Pillow's decoders raise whatever they please
        raise ValueError(f"calibration image {source} cannot be read: {error}") from error
