"""A model folder as one ONNX file: raw pixels in, label, score and verdict out."""

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm.data
import torch
from PIL import Image
from torch import nn

from isomax.calibration import Calibration
from isomax_adapters.onnx.graph import OUTPUTS, assemble, preprocessing
from isomax_adapters.onnx.precision import PRECISIONS, join, split, to_fp16, to_int8
from isomax_adapters.onnx.runtime import Scorer, as_rgb, find_images
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.attaching import classifier_names

CALIBRATION_IMAGES = 256  # more of them hardly move the ranges of the activations
FEWEST_CALIBRATION_IMAGES = 32  # with fewer, the ranges are too narrow for other images
VERIFIED_IMAGES = 64  # of the calibration images

# share of values of a preprocessed image that may be another grey level than timm's: ONNX Runtime
# and Pillow round differently what lies half way (0.2% of values at most if bicubic, up to 10% if
# bilinear and enlarged); with the two passes of Resize in the wrong order it is 16 to 25%
PIXELS_OFF = 0.12

# how far a file may be from PyTorch: root mean square difference of the logits and of the scores
# as shares of their standard deviations, and the share of images with the same label
TOLERANCES = {"fp16": (0.05, 0.05, 0.9), "int8": (0.25, 0.5, 0.8)}

ImageSource = str | os.PathLike | np.ndarray


class ExportError(RuntimeError):
    """The model cannot be exported, or the exported file disagrees with it; nothing is written."""


def export(
    model_folder: str | Path,
    path: str | Path,
    precision: str = "fp32",
    calibration_images: str | os.PathLike | Iterable[ImageSource] | None = None,
) -> Path:
    """Export a model folder with its preprocessing, score and threshold, and verify the file.

    The file takes ``images``, uint8 ``[N, H, W, 3]`` RGB of any size, and gives ``label``,
    ``confidence``, ``score``, ``is_ood``, ``logits`` and ``probabilities``. It holds everything it
    needs; class names, threshold, other false-alarm rates, precision, preprocessing and provenance
    are JSON in its metadata under ``isomax``.

    Before the file appears, it is verified part by part. Its pixels must be those of timm's
    transform, on random images of several sizes, but for one grey level here and there. From the
    same pixels, it and the PyTorch model must come to the same logits and scores: in ``fp32`` to
    1e-3 (of the largest logit and of the score, where these exceed 1), in the others to
    ``TOLERANCES``; in ``int8`` on calibration images. Label, probabilities, score and verdict must
    follow from the logits, on both sides of the threshold.

    The threshold is the model's in every precision: refitted on so few images, it would move by
    more than quantisation moves the scores. ``isomax export --id`` measures what it comes to.

    :param model_folder: as :func:`isomax_adapters.timm.save_model` writes it, calibrated
    :param path: the file to write
    :param precision: of the backbone's weights and arithmetic: ``fp32``; ``fp16``, half the file;
        ``int8``, a quarter, quantised statically. Preprocessing, head and score stay in float32
    :param calibration_images: needed for ``int8`` and only there: ID images, such as training
        images, as a folder, paths or uint8 arrays ``[H, W, 3]``; at least 32, of which at most 256
        are used, evenly spaced
    :return: the path
    :raises ExportError: if torch cannot export the model, or the file disagrees with it
    :raises ValueError: if the folder is no calibrated model folder, its preprocessing cannot be
        exported, or precision and calibration images are not as described
    """
    path = Path(path)
    sources = _calibration_sources(precision, calibration_images)
    model: Any = load_model(model_folder)  # a timm model: more attributes than nn.Module has
    calibration = load_calibration(model_folder)
    if calibration is None:
        raise ValueError(
            f"{model_folder} is not calibrated, so there is no threshold; calibrate it with "
            "isomax.calibration.Calibration.fit and isomax_adapters.timm.save_calibration"
        )
    config = timm.data.resolve_model_data_config(model)
    names = model.pretrained_cfg.get("label_names") or range(model.num_classes)
    metadata = {
        "format": 1,
        "class_names": [str(name) for name in names],
        **calibration.to_dict(),
        "precision": precision,
        "preprocessing": config,
        "provenance": {
            "architecture": model.pretrained_cfg.get("architecture"),
            # Pillow's too: what it makes of a tall image depends on it
            **{name: version(name) for name in ("isomax", "timm", "torch", "onnx", "pillow")},
        },
    }
    pixels = _preprocessed(sources, config)
    network = export_network(model, tuple(config["input_size"]))
    if precision != "fp32":
        network = _reduced(network, classifier_names(model), precision, pixels)
    exported = assemble(
        network,
        config,
        calibration.score,
        calibration.temperature,
        calibration.threshold,
        metadata,
    )
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(exported, str(partial))
        _verify_pixels(exported, config)
        _verify_verdict(exported, calibration)
        some = sources[:: max(1, len(sources) // VERIFIED_IMAGES)]
        batches = (_decoded(s)[None] for s in some) if some else _random_batches(config)
        _verify_network(model, calibration, partial, precision, batches)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def export_network(model: nn.Module, input_size: tuple[int, int, int]) -> onnx.ModelProto:
    """The network alone: ``pixels``, float ``[N, 3, h, w]`` -> ``logits``.

    :raises ExportError: if torch cannot export it
    """
    example = torch.zeros(2, *input_size)
    quiet = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(quiet):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises of its own and of its dependencies'
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"torch.onnx cannot export this model: {reason[0]}") from error
    assert program is not None
    return program.model_proto


def _reduced(
    network: onnx.ModelProto, classifiers: list[str], precision: str, pixels: list[np.ndarray]
) -> onnx.ModelProto:
    try:
        backbone, head = split(network, classifiers)
    except ValueError as error:
        raise ExportError(str(error)) from error
    return join(to_fp16(backbone) if precision == "fp16" else to_int8(backbone, pixels), head)


def _calibration_sources(
    precision: str, given: str | os.PathLike | Iterable[ImageSource] | None
) -> list[ImageSource]:
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if (precision == "int8") != (given is not None):
        raise ValueError(
            "int8 is calibrated on in-distribution images: pass a folder of training images"
            if given is None
            else f"calibration images are for int8; {precision} takes none"
        )
    if given is None:
        return []
    found = list(find_images([given]) if isinstance(given, (str, os.PathLike)) else given)
    if not found:
        raise ValueError(f"there are no calibration images in {given}")
    if len(found) < FEWEST_CALIBRATION_IMAGES:
        raise ValueError(
            f"{len(found)} calibration images are too few; int8 takes at least "
            f"{FEWEST_CALIBRATION_IMAGES} to learn the ranges of the activations, and "
            f"{CALIBRATION_IMAGES} do best"
        )
    places = np.linspace(0, len(found) - 1, min(len(found), CALIBRATION_IMAGES))
    return [found[index] for index in places.round().astype(int)]


def _preprocessed(sources: list[ImageSource], config: dict[str, Any]) -> list[np.ndarray]:
    """Batches of one image, as the network gets them in the exported file."""
    graph = preprocessing(config, opset=18, ir_version=10)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return [session.run(None, {"images": _decoded(source)[None]})[0] for source in sources]


def _decoded(source: ImageSource) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return source
    try:
        with Image.open(source) as image:
            return np.asarray(as_rgb(image))
    except Exception as error:  # Pillow's decoders raise whatever they please
        raise ValueError(f"calibration image {source} cannot be read: {error}") from error


def _verify_pixels(exported: onnx.ModelProto, config: dict[str, Any]) -> None:
    """Compare the preprocessing in the file with timm's transform."""
    transform = timm.data.create_transform(**config)
    preprocess = _part(exported, ["images"], ["pixels"])
    level = 1 / (255 * np.array(config["std"])[:, None, None])
    for images in _random_batches(config):
        expected = torch.stack([transform(Image.fromarray(image)) for image in images]).numpy()
        off = np.abs(preprocess.run(None, {"images": images})[0] - expected) / level
        if not (off.max() < 2.5 and (off > 0.5).mean() <= PIXELS_OFF):  # NaN does not
            size = "x".join(map(str, images.shape[1:3]))
            raise ExportError(
                f"the file's preprocessing disagrees with timm's: of an image of {size} pixels, "
                f"{(off > 0.5).mean():.1%} of the values differ, by up to {off.max():.0f} of 255; "
                "nothing was written"
            )


def _verify_network(
    model: nn.Module,
    calibration: Calibration,
    path: Path,
    precision: str,
    batches: Iterable[np.ndarray],
) -> None:
    """Compare the file with PyTorch on uint8 ``[N, H, W, 3]``, both from the file's own pixels.

    What a network makes of one grey level more or less is not the file's doing: the logits of a
    visformer with random weights move by half a percent, in double precision as well.
    """
    session = Scorer(path).session  # its own outputs: Scorer.run sets the threshold anew
    preprocess = _part(onnx.load(path), ["images"], ["pixels"])
    logits, found = [], []
    for images in batches:
        pixels = torch.from_numpy(preprocess.run(None, {"images": images})[0])
        with torch.no_grad():
            logits.append(model(pixels))
        found.append(session.run(OUTPUTS, {"images": images}))
    outputs = dict(zip(OUTPUTS, map(np.concatenate, zip(*found, strict=True)), strict=True))
    expected = {
        "logits": torch.cat(logits).numpy(),
        "score": calibration.score_of(torch.cat(logits)).numpy(),
    }
    gaps = {name: outputs[name] - value for name, value in expected.items()}
    labels = outputs["label"]
    same = float((labels == expected["logits"].argmax(axis=1)).mean())
    if precision == "fp32":
        scales = {
            "logits": max(1.0, float(np.abs(expected["logits"]).max())),
            "score": np.maximum(1.0, np.abs(expected["score"])),
        }
        off = {name: float(np.abs(gap / scales[name]).max()) for name, gap in gaps.items()}
        agrees = all(value <= 1e-3 for value in off.values())  # NaN does not
    else:
        off = {
            name: float(np.sqrt((gap**2).mean()) / expected[name].std())
            for name, gap in gaps.items()
        }
        limits = TOLERANCES[precision]
        agrees = off["logits"] <= limits[0] and off["score"] <= limits[1] and same >= limits[2]
    if not agrees:
        raise ExportError(
            f"the {precision} file disagrees with the model: logits by {off['logits']:.2g}, scores "
            f"by {off['score']:.2g} (relative), {same:.0%} of {len(labels)} labels the same; "
            "nothing was written"
        )
    _verify_outputs(outputs, calibration)


def _verify_verdict(exported: onnx.ModelProto, calibration: Calibration) -> None:
    """Check what the file makes of logits with scores on both sides of any threshold."""
    names = [name for name in OUTPUTS if name != "logits"]
    verdict = _part(exported, ["logits"], names)
    classes = exported.graph.output[OUTPUTS.index("logits")].type.tensor_type.shape.dim[1].dim_value
    generator = np.random.default_rng(0)
    spread, level = 10 ** generator.uniform(-2, 2, (2, 512, 1))
    logits = spread * generator.standard_normal((512, classes)) - level
    logits = logits.astype(np.float32)
    found = dict(zip(names, verdict.run(names, {"logits": logits}), strict=True))
    _verify_outputs({"logits": logits, **found}, calibration)


def _verify_outputs(outputs: dict[str, np.ndarray], calibration: Calibration) -> None:
    """Check that the other outputs follow from the logits, whatever the precision of those."""
    logits = torch.from_numpy(outputs["logits"]).double()
    probabilities = (logits / calibration.temperature).softmax(dim=1).numpy()
    rounding = np.finfo(np.float32).eps * logits.abs().amax(dim=1).numpy() / calibration.temperature
    score = calibration.score_of(logits).numpy()
    chosen = np.take_along_axis(outputs["logits"], outputs["label"][:, None], axis=1)[:, 0]
    right = {
        "label": chosen == outputs["logits"].max(axis=1),
        "probabilities": np.abs(outputs["probabilities"] - probabilities)
        <= 1e-4 + rounding[:, None],
        "confidence": outputs["confidence"] == outputs["probabilities"].max(axis=1),
        "score": np.abs(outputs["score"] - score) <= 1e-4 * np.maximum(1, np.abs(score)),
        "is_ood": outputs["is_ood"] == (outputs["score"] > np.float32(calibration.threshold)),
    }
    wrong = [name for name, holds in right.items() if not holds.all()]
    if wrong:
        raise ExportError(
            f"the file disagrees with the model's calibration: {', '.join(wrong)} do not follow "
            "from the logits; nothing was written"
        )


def _part(
    model: onnx.ModelProto, inputs: list[str], outputs: list[str]
) -> onnxruntime.InferenceSession:
    part = onnx.utils.Extractor(model).extract_model(inputs, outputs)
    return onnxruntime.InferenceSession(part.SerializeToString())


def _random_batches(config: dict[str, Any]) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    height, width = config["input_size"][1:]
    # the last one shrinks, and its height by more than its width: see _VERTICAL_FIRST
    sizes = ((height, width), (height + 13, 2 * width + 7), (5 * height + 1, 2 * width + 3))
    for size in sizes:
        yield np.stack([_smooth_image(generator, size) for _ in range(4)])


def _smooth_image(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    # like a photograph: large shapes and some grain
    coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    grain = generator.integers(-8, 9, (*size, 3))
    return np.clip(np.asarray(image, dtype=int) + grain, 0, 255).astype(np.uint8)
