"""Each detector in a file against pytorch-ood's own ``predict``: six families, real photographs.

``tox -e detector-files -- --photos FOLDER [--weights FILE] [MODEL...]``. Of each file: the largest
difference of a score, relative to the score or, where that is smaller, to the scores' standard
deviation; and how many verdicts differ, of images that lie no nearer to the threshold than that
difference. Exit status 1 if a difference exceeds 1e-4, or a verdict differs.

ASH jumps: where two features lie next to each other at its percentile, their last bit says which
one is kept. Where a detector of feature maps exceeds the bound, it is given the maps that the file
itself has made, and that difference is shown, marked with ``~``.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import helper
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evaluation.benchmarks.sweeps.detectors import see_every_class
from isomax.calibration import Calibration
from isomax_adapters.onnx.graph import assemble
from isomax_adapters.onnx.network import export_network, with_detector, with_maps
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.pytorch_ood import NAMES, Parts, detectors_for, kind_of
from isomax_adapters.runtime.metadata import METADATA_FORMAT
from isomax_adapters.timm.attaching import classifier_names
from isomax_adapters.timm.checkpoints import load_weights, read_checkpoint
from isomax_evaluation.data.listing.files import find_images
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.scoring import score

MODELS = {
    "resnetv2_18": "1x1 convolution",
    "mobilenetv3_small_050": "MobileNet",
    "test_vit": "ViT",
    "test_convnext": "ConvNeXt",
    "swin_tiny_patch4_window7_224": "Swin, NHWC",
    "deit_tiny_distilled_patch16_224": "distilled DeiT",
}
WITH_WEIGHTS = "tf_efficientnet_lite0"
JUMPS = "~ on the maps that the file itself has made"
CLASSES, CROPS, FRESH, ALPHA, MOST = 5, 4, 24, 0.1, 1e-4


def photographs(folder: Path, side: int) -> np.ndarray:
    """Random crops of each, uint8 ``[N, side, side, 3]``."""
    generator = np.random.default_rng(0)
    found = []
    for path in find_images([folder]):
        with Image.open(path) as image:
            whole = image.convert("RGB")
        for _ in range(CROPS):
            size = int(min(whole.size) * generator.uniform(0.5, 1))
            x, y = (int(generator.integers(0, s - size + 1)) for s in whole.size)
            part = whole.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + size, y + size))
            found.append(np.asarray(part))
    order = generator.permutation(len(found))
    return np.stack(found)[order]


def network_of(name: str, weights: Path | None) -> Parts:
    """A model of a few classes, of real weights if there are some."""
    torch.manual_seed(0)
    classes = 1000 if name == WITH_WEIGHTS else CLASSES
    model = timm.create_model(name, num_classes=classes).eval()
    if name == WITH_WEIGHTS:
        assert weights is not None
        load_weights(model, read_checkpoint(weights))
    return Parts(model)


def check(name: str, photos: Path, weights: Path | None) -> dict[str, tuple[float, int, str]]:
    """Of each detector that a file can hold: difference, verdicts that differ, a note."""
    parts = network_of(name, weights)
    model: Any = parts.model
    config = dict(timm.data.resolve_model_data_config(model)) | {"crop_pct": 1.0}
    size = tuple(config["input_size"])
    pixels = photographs(photos, size[1])
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    tensors = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    if name == WITH_WEIGHTS:
        with torch.no_grad():
            often = torch.cat([model(x) for x in tensors.split(32)]).argmax(dim=1)
        parts.keep_classes(often.bincount().topk(CLASSES).indices.sort().values.tolist())
        with torch.no_grad():
            batches = [(x, model(x).argmax(dim=1)) for x in tensors.split(32)]
    else:
        batches = see_every_class(parts, list(tensors.split(32)))
    labels = torch.cat([y for _, y in batches])
    third = len(labels) // 3 // 32 * 32
    detectors = {
        detector: made
        for detector, made in detectors_for(parts).items()
        if obstacle_to_export(detector, parts, size) is None
    }
    failed = fit(parts, detectors, batches[: 2 * third // 32])
    held, fresh = tensors[2 * third :][::2], tensors[2 * third :][1::2][:FRESH]
    given = pixels[2 * third :][1::2][:FRESH]
    fitted_ones = {name: one for name, one in detectors.items() if name not in failed}
    outputs, known, more = score(parts, fitted_ones, [(held, torch.zeros(len(held)).long())])
    failed |= more
    classifiers = classifier_names(model)
    plain, maps = export_network(model, size), None
    found: dict[str, tuple[float, int, str]] = {}
    for detector, fitted in detectors.items():
        if detector in failed:
            found[detector] = (np.nan, 0, failed[detector])
            continue
        network = plain
        if kind_of(fitted) == "feature_maps":
            network = maps = maps or with_maps(parts, size)
        try:
            with torch.no_grad():
                expected = fitted.predict(fresh).double()
            logits = outputs.logits
            calibration = Calibration.fit(
                logits, logits.argmax(dim=1), detector, ALPHA, known[detector]
            )
            whole = with_detector(network, fitted, detector, parts, classifiers)
            about = {"format": METADATA_FORMAT, "class_names": list(map(str, range(CLASSES)))}
            about |= {"precision": "fp32", "preprocessing": config, "scored_by": "PyTorch"}
            file = assemble(whole.whole, config, about | calibration.to_dict())
            session = onnxruntime.InferenceSession(file.SerializeToString())
            rows = [session.run(["score", "is_ood"], {"images": image[None]}) for image in given]
        except Exception as error:  # of whatever kind: the table has it
            found[detector] = (np.nan, 0, f"{type(error).__name__}: {str(error)[:200]}")
            continue
        scores = torch.tensor(np.concatenate([row[0] for row in rows])).double()
        away, relative = differences(scores, expected)
        note = ""
        if relative.max() > MOST and kind_of(fitted) == "feature_maps":
            maps_of = opened(file, f"network/{network.graph.output[1].name}")
            own = torch.cat([torch.from_numpy(maps_of(image[None])) for image in given])
            with torch.no_grad():
                expected = fitted.predict_feature_maps(own).double()
            away, relative = differences(scores, expected)
            note = JUMPS
        clear = (expected - calibration.threshold).abs() > away.max()
        verdict = torch.tensor(np.concatenate([row[1] for row in rows]))
        other = (verdict != (expected > calibration.threshold)) & clear
        found[detector] = (float(relative.max()), int(other.sum()), note)
    return found


def differences(scores: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As they are, and relative."""
    away = (scores - expected).abs()
    return away, away / expected.abs().clamp(min=float(expected.std()))


def opened(file: onnx.ModelProto, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """What a tensor inside of a file is for images."""
    file.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(file.SerializeToString())
    return lambda images: session.run([name], {"images": images})[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = given.models or [*MODELS, *([WITH_WEIGHTS] if given.weights else [])]
    found = {
        name: check(name, given.photos, given.weights)
        for name in track(names, console=Console(stderr=True))
    }
    table = Table("detector", *(MODELS.get(name, name) for name in found))
    bad = 0
    for detector in NAMES:
        cells = [results.get(detector) for results in found.values()]
        if not any(cells):
            continue
        row = []
        for cell in cells:
            if cell is None:
                row.append("-")
                continue
            difference, verdicts, note = cell
            error = note and note != JUMPS
            wrong = bool(error) or difference > MOST or verdicts > 0
            bad += wrong
            text = "error" if error else f"{'~' * (note == JUMPS)}{difference:.0e}"
            row.append(text + (f", {verdicts} verdicts" if verdicts else "") + " !" * wrong)
        table.add_row(detector, *row)
    Console(width=160).print(table)
    for name, results in found.items():
        for detector, (_, _, note) in results.items():
            if note:
                print(f"{detector} on {name}: {note}")
    print(f"{bad} cells of {sum(map(len, found.values()))} are not as they should be")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
