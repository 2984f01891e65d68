"""What a detector adds to a file: each file's time as a multiple of the bare network's.

``tox -e detector-costs [-- THREADS]``: ResNet-18 of 1,000 classes at 224 pixels, batches of 16, on
ONNX Runtime; medians of the ratios of pairs of runs in turns. Images have the size that the Scorer
gives them, which the graph only crops. KNN and NNGuide compare with 10,000 images. Exit status 1 if
a ratio is above 1.05, of feature maps 1.15; the two with a bank are only shown.
"""

import platform
import sys
import warnings
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from isomax_adapters.onnx.graph import assemble
from isomax_adapters.onnx.network import export_network, with_detector, with_maps
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.pytorch_ood import Parts, detectors_for, kind_of, with_bank
from isomax_adapters.runtime.metadata import METADATA_FORMAT, scaled_size
from isomax_adapters.timm.attaching import classifier_names
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.extraction.store import Outputs, OutputsInMemory
from isomax_evaluation.speed.timing import ratio_to

MODEL, CLASSES, SIZE, BATCH, BANK, SAMPLES = "resnet18", 1000, (3, 224, 224), 16, 10_000, 12_000
MOST, MOST_OF_MAPS = 1.05, 1.15
FEW = 64  # images for detectors that are fitted on feature maps


def outputs_of(parts: Parts) -> Outputs:
    """Features as those of a trained network might be, with labels that it gets right."""
    torch.manual_seed(0)
    directions = F.normalize(parts.weight.detach(), dim=1)
    labels = torch.arange(SAMPLES) % CLASSES
    noise = torch.randn(SAMPLES, directions.shape[1])
    features = (8 * directions[labels] + 0.2 * noise).relu()
    logits = parts.classify(features).detach()
    return Outputs(logits, features, logits.argmax(dim=1))


def session_of(model: Any, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def main() -> int:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=CLASSES).eval()
    parts, config = Parts(model), dict(timm.data.resolve_model_data_config(model))
    torch.nn.init.normal_(model.fc.weight)
    images = torch.randn(FEW, *SIZE)
    loader = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in images.split(16)]
    detectors = {
        name: detector
        for name, detector in detectors_for(parts).items()
        if obstacle_to_export(name, parts, SIZE) is None
    }
    on_maps = {n: d for n, d in detectors.items() if kind_of(d) == "feature_maps"}
    failed = fit(parts, on_maps, loader)
    rest = {n: d for n, d in detectors.items() if n not in on_maps}
    kept = _Kept(outputs_of(parts))
    failed |= fit(parts, rest, [], keeper=kept, seed=0)
    bare = export_network(model, SIZE)
    maps = with_maps(parts, SIZE)
    baseline = session_of(bare, threads)
    generator = np.random.default_rng(0)
    floats = generator.standard_normal((BATCH, *SIZE)).astype(np.float32)
    pixels = generator.integers(0, 256, (BATCH, *scaled_size(config), 3), dtype=np.uint8)
    table = Table(
        title=f"{MODEL}, {CLASSES} classes, batch {BATCH}, {threads} threads, {platform.machine()},"
        f" onnxruntime {onnxruntime.__version__}: time beside the bare network, and file size "
        "beside network and detector",
        title_justify="left",
    )
    for column in ("detector", "of", "ratio", "MB"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    calibration = {"score": "x", "alpha": 0.05, "threshold": 1.0, "temperature": 1.0}
    calibration |= {"scores": [0.0] * 19 + [1.0], "samples": 20, "guarantee": "established"}
    calibration |= {"tolerance": 0.0, "scored_by": "PyTorch"}
    about = {"format": METADATA_FORMAT, "class_names": list(map(str, range(CLASSES)))}
    about |= {"precision": "fp32", "preprocessing": config}
    above = []
    for name, detector in track(detectors.items(), console=Console(stderr=True)):
        if name in failed:
            table.add_row(name, "", failed[name][:60], "")
            continue
        kind = str(kind_of(detector))
        network = maps if kind == "feature_maps" else bare
        small = with_bank(detector, BANK)
        whole = with_detector(network, small, name, parts, classifier_names(model))
        file = assemble(whole.whole, config, about | calibration | {"score": name})
        session = session_of(file, threads)
        found = ratio_to(
            lambda: baseline.run(None, {"pixels": floats}),
            lambda session=session: session.run(None, {"images": pixels}),
            budget=60,
            least=15,
        )
        most = MOST_OF_MAPS if kind == "feature_maps" else MOST
        if found.ratio > most and name not in ("KNN", "NNGuide"):
            above.append(name)
        size = file.ByteSize() / 1e6
        table.add_row(name, kind, f"{found.ratio:.3f} ±{found.spread:.3f}", f"{size:.1f}")
    Console(width=140).print(table)
    print(f"above the bound: {', '.join(above) or 'none'}")
    return bool(above or failed)


class _Kept(OutputsInMemory):
    """Outputs that are there already."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self._whole = outputs


if __name__ == "__main__":
    sys.exit(main())
