"""A model folder as one ONNX file: raw pixels in, label, score and verdict out."""

import io
import logging
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm.data
import torch
from PIL import Image
from torch import nn

from isomax.calibration import Calibration
from isomax_adapters.onnx.graph import assemble
from isomax_adapters.onnx.runtime import Scorer
from isomax_adapters.timm import load_calibration, load_model


class ExportError(RuntimeError):
    """The model cannot be exported, or the exported file disagrees with it; nothing is written."""


def export(model_folder: str | Path, path: str | Path) -> Path:
    """Export a model folder with its preprocessing, score and threshold, and verify the file.

    The file takes ``images``, uint8 ``[N, H, W, 3]`` RGB of any size, and gives ``label``,
    ``confidence``, ``score``, ``is_ood``, ``logits`` and ``probabilities``. It holds everything it
    needs; class names, threshold, other false-alarm rates, preprocessing and provenance are JSON
    in its metadata under ``isomax``.

    Before the file appears, its labels and scores on random images of several sizes are compared
    with those of timm's transform and the PyTorch model.

    :param model_folder: as :func:`isomax_adapters.timm.save_model` writes it, calibrated
    :param path: the file to write
    :return: the path
    :raises ExportError: if torch cannot export the model, or the file disagrees with it
    :raises ValueError: if the folder is no calibrated model folder, or its preprocessing cannot
        be exported
    """
    path = Path(path)
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
        "preprocessing": config,
        "provenance": {
            "architecture": model.pretrained_cfg.get("architecture"),
            **{package: version(package) for package in ("isomax", "timm", "torch", "onnx")},
        },
    }
    network = _export_network(model, tuple(config["input_size"]))
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
        _verify(model, config, calibration, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _export_network(model: nn.Module, input_size: tuple[int, int, int]) -> onnx.ModelProto:
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


def _verify(model: nn.Module, config: dict[str, Any], calibration: Calibration, path: Path) -> None:
    """Compare the file with timm's transform and the PyTorch model, on images made here."""
    transform = timm.data.create_transform(**config)
    scorer = Scorer(path)
    generator = np.random.default_rng(0)
    height, width = config["input_size"][1:]
    for size in ((height, width), (height + 13, 2 * width + 7), (2 * height + 1, width)):
        images = np.stack([_smooth_image(generator, size) for _ in range(2)])
        tensors = torch.stack([transform(Image.fromarray(image)) for image in images])
        with torch.no_grad():
            logits = model(tensors)
        expected = calibration.score_of(logits)
        result = scorer.run(images)
        scale = max(1.0, float(logits.abs().max()))
        difference = float(np.abs(result["logits"] - logits.numpy()).max()) / scale
        drift = float(np.abs(result["score"] - expected.numpy()).max()) / scale
        if not max(difference, drift) <= 1e-3:
            raise ExportError(
                f"the exported file disagrees with the model: logits by {difference:.2g}, scores "
                f"by {drift:.2g} (relative) on images of {size[0]}x{size[1]}; nothing was written"
            )


def _smooth_image(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    # like a photograph: large shapes and some grain
    coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    grain = generator.integers(-8, 9, (*size, 3))
    return np.clip(np.asarray(image, dtype=int) + grain, 0, 255).astype(np.uint8)
