"""What scoring costs the CPU with a trained model of each loss: seconds of CPU time per image."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import pandas as pd
import torch

from isomax_adapters.onnx import export
from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_adapters.timm import load_model
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.output.folders import run_folder
from isomax_evaluation.speed.costs import predictor
from isomax_evaluation.training.losses import LOSSES

BASELINES = ("EnergyBased", "ODIN", "Mahalanobis", "MahalanobisODIN")
PIXELS, BATCH = 32, 50


def measure_inference(output: Path, losses: Sequence[str], repeats: int = 15) -> pd.DataFrame:
    """What scoring images costs the CPU, side by side: seconds of CPU time per 1,000 images.

    CPU time is what the energy of a computation on the CPU goes with. One thread: several would
    be charged for waiting for each other.

    :param output: of a comparison
    :param losses: its losses; softmax, among them, is what the others are compared with
    :return: runtime, loss, detector and ``cpu_seconds_per_1000``, with the ratio to softmax
        classification in the same runtime
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator)
    pixels = (images.clamp(-2, 2) * 60 + 127).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    functions: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for loss in losses:
        own = LOSSES[loss].score
        names = (own, *BASELINES) if loss == "softmax" else (own,)
        model_folder = run_folder(output, loss, 0) / "model"
        model: Any = load_model(model_folder)
        parts, detectors = Parts(model), detectors_for(model, names)
        # what a detector is fitted on does not change what it costs
        labels = torch.arange(BATCH) % model.num_classes
        failed = fit(parts, detectors, [(images, labels)])
        assert not failed, failed
        for name, detector in detectors.items():
            functions["PyTorch", loss, name] = predictor(detector, images)
        exported = output / f"{loss}.onnx"
        if not exported.is_file():
            export(model_folder, exported)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )
        functions["ONNX Runtime", loss, own] = lambda s=session: s.run(None, {"images": pixels})  # type: ignore[misc]
    seconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in functions}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in range(repeats + 2):
        for key, function in functions.items():
            started = time.process_time()
            function()
            if repeat >= 2:
                seconds[key].append(time.process_time() - started)
    torch.set_num_threads(threads)
    rows = []
    for (runtime, loss, detector), measured in seconds.items():
        softmax = seconds[runtime, "softmax", LOSSES["softmax"].score]
        rows.append(
            {
                "runtime": runtime,
                "loss": loss,
                "detector": detector,
                "cpu_seconds_per_1000": 1000 * median(measured) / BATCH,
                "ratio": median(measured) / median(softmax),
            }
        )
    return pd.DataFrame(rows)
