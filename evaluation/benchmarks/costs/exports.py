"""What the exported graph costs beside the bare network, PyTorch and the smaller precisions.

``tox -e export-costs [-- --quick]``: ResNet-18 at 224 pixels, random weights
under an IsoMax head; then scoring a folder of made photographs beside its parts.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from rich.console import Console
from rich.table import Table

from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import export_network
from isomax_adapters.runtime import Scorer
from isomax_adapters.runtime.decoding import from_array
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.timm import load_model, save_model
from isomax_evaluation.cli.tables import of_speed
from isomax_evaluation.speed.files import (
    BATCH,
    images_to_score,
    photograph,
    rows_of,
    scoring_seconds,
    title_of,
)
from isomax_evaluation.speed.timing import alternate

MODEL, THREADS = "resnet18", 2


def measure(
    images: Path | None = None, quick: bool = False, model: str = MODEL, size: int = 224
) -> Table:
    """The exported model against the bare network, PyTorch, int8, and scoring a folder against its
    parts.

    :param images: a folder of images to score; without it, 160 JPEGs of several sizes made here
    :param quick: fewer repetitions
    :param model: a timm architecture; random weights under an IsoMax head
    :param size: its input height and width
    :raises InputError: if the folder has no images
    """
    repeats = 3 if quick else 25
    with tempfile.TemporaryDirectory() as scratch:
        files = images_to_score(images, Path(scratch))
        folder = _make_model_folder(model, size, Path(scratch) / "model")
        graph = graph_seconds(folder, size, Path(scratch), repeats)
        scorer = Scorer(Path(scratch) / "fp32.onnx", threads=THREADS)
        scoring = scoring_seconds(scorer, files, max(3, repeats // 5))
    bare, whole = graph["bare"], graph["fp32"]
    measured = (
        ("network alone: floats in, logits out", bare, "1"),
        ("exported file: pixels in, verdict out", whole, f"{whole / bare:.3f}x the time"),
        ("PyTorch, network alone", graph["torch"], f"{graph['torch'] / bare:.2f}x the time"),
        ("exported file, fp16", graph["fp16"], f"{whole / graph['fp16']:.2f}x the speed of fp32"),
        ("exported file, int8", graph["int8"], f"{whole / graph['int8']:.2f}x the speed of fp32"),
    )
    rows = [(name, f"{1000 * seconds / BATCH:.2f}", ratio) for name, seconds, ratio in measured]
    title = title_of(f"{model} at {size} pixels, torch {torch.__version__}", THREADS)
    return of_speed(title, rows + rows_of(scoring, len(files)))


def graph_seconds(folder: Path, size: int, scratch: Path, repeats: int) -> dict[str, float]:
    """Seconds per batch of ``bare`` (the network alone), ``torch`` (the same, eager) and the whole
    file in every precision, which stay in ``scratch``; its images have the size that the Scorer
    gives them."""
    generator = np.random.default_rng(0)
    pixels = np.stack([photograph(generator, size, size) for _ in range(BATCH)])
    floats = generator.standard_normal((BATCH, 3, size, size)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model: Any = load_model(folder)
    bare = onnxruntime.InferenceSession(
        export_network(model, (3, size, size)).SerializeToString(), options
    )
    runs: dict[str, Callable[[], object]] = {"bare": lambda: bare.run(None, {"pixels": floats})}
    for precision in ("fp32", "fp16", "int8"):
        given = [*pixels, *pixels[:, ::-1]] if precision == "int8" else None
        file = export(folder, scratch / f"{precision}.onnx", precision, given)
        scorer = Scorer(file, threads=THREADS)
        config = scorer.metadata["preprocessing"]
        ready = np.stack([to_size_of_graph(from_array(image), config) for image in pixels])
        runs[precision] = partial(scorer.run, ready)
    tensors = torch.from_numpy(floats)
    runs["torch"] = lambda: model(tensors)
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        # each of these has threads of its own, which spin for a while after a run
        return alternate(runs, repeats, pause=0.05)


def _make_model_folder(name: str, size: int, folder: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(f"isomax_{name}", num_classes=10).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)  # as after some training
    with torch.no_grad():
        logits = model(torch.randn(20, 3, size, size))
    calibration = Calibration.fit(logits, logits.argmax(dim=1), alpha=0.1)
    config = {"input_size": (3, size, size)}
    return save_model(model, folder, data_config=config, calibration=calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder to score, instead of made images")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    given = parser.parse_args()
    Console(width=140).print(measure(given.images, given.quick))


if __name__ == "__main__":
    main()
