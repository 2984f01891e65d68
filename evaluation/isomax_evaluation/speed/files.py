"""What an exported file costs: ratios measured in one process, in turns."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from PIL import Image
from rich.table import Table

from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import export_network
from isomax_adapters.onnx.images import as_rgb, find_images
from isomax_adapters.onnx.runtime import Scorer
from isomax_adapters.timm import load_model, save_model
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.speed.timing import alternate

MODEL, BATCH, THREADS = "resnet18", 16, 2


def measure(
    images: Path | None = None, quick: bool = False, model: str = MODEL, size: int = 224
) -> Table:
    """The exported model against the bare network, PyTorch, int8, and scoring a folder against its
    parts.

    :param images: a folder of images to score; without it, 64 JPEGs of 500x375 made here
    :param quick: fewer repetitions
    :param model: a timm architecture; random weights under an IsoMax head
    :param size: its input height and width
    :raises InputError: if the folder has no images
    """
    repeats = 3 if quick else 25
    with tempfile.TemporaryDirectory() as scratch:
        files = list(find_images([images] if images else [_make_photographs(Path(scratch) / "p")]))
        if not files:
            raise InputError(f"there are no images in {images}")
        folder = _make_model_folder(model, size, Path(scratch) / "model")
        graph = graph_seconds(folder, size, Path(scratch), repeats)
        scorer = Scorer(Path(scratch) / "fp32.onnx", threads=THREADS)
        scoring = scoring_seconds(scorer, files, max(3, repeats // 3))
    table = Table(
        title=f"{model} at {size} pixels, batch {BATCH}; {platform.machine()}, {THREADS} threads, "
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, medians of alternating "
        "runs",
        title_justify="left",
    )
    for column in ("", "ms per image", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    bare, whole = graph["bare"], graph["fp32"]
    for name, seconds, ratio in (
        ("network alone: floats in, logits out", bare, "1"),
        ("exported file: pixels in, verdict out", whole, f"{whole / bare:.3f}x the time"),
        ("PyTorch, network alone", graph["torch"], f"{graph['torch'] / bare:.2f}x the time"),
        ("exported file, fp16", graph["fp16"], f"{whole / graph['fp16']:.2f}x the speed of fp32"),
        ("exported file, int8", graph["int8"], f"{whole / graph['int8']:.2f}x the speed of fp32"),
    ):
        table.add_row(name, f"{1000 * seconds / BATCH:.2f}", ratio)
    table.add_section()
    slower = max(scoring["decoding"], scoring["inference"])
    share = slower / scoring["folder"]
    bound = slower / (scoring["decoding"] + scoring["inference"])
    for name, seconds, ratio in (
        (f"decoding {len(files)} files", scoring["decoding"], ""),
        ("inference on decoded images", scoring["inference"], ""),
        (
            "scoring the files",
            scoring["folder"],
            f"{share:.0%} of the slower's throughput; {bound:.0%} if both want the same cores",
        ),
    ):
        table.add_row(name, f"{1000 * seconds / len(files):.2f}", ratio)
    return table


def graph_seconds(folder: Path, size: int, scratch: Path, repeats: int) -> dict[str, float]:
    """Seconds per batch of ``bare`` (the network alone), ``torch`` (the same, eager) and the whole
    file in every precision, which stay in ``scratch``."""
    generator = np.random.default_rng(0)
    pixels = np.stack([_photograph(generator, size, size) for _ in range(BATCH)])
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
        runs[precision] = lambda scorer=scorer: scorer.run(pixels)  # type: ignore[misc]
    tensors = torch.from_numpy(floats)
    runs["torch"] = lambda: model(tensors)
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        # each of these has threads of its own, which spin for a while after a run
        return alternate(runs, repeats, pause=0.05)


def scoring_seconds(scorer: Scorer, files: Sequence[str], repeats: int) -> dict[str, float]:
    """Seconds for all files: ``decoding`` and ``inference`` alone, and ``folder``, both at once."""
    with ThreadPoolExecutor(scorer.threads) as pool:
        decoded = list(pool.map(_decode, files))
        return alternate(
            {
                "decoding": lambda: list(pool.map(_decode, files)),
                "inference": lambda: list(scorer.stream(decoded, BATCH)),
                "folder": lambda: list(scorer.stream(files, BATCH)),
            },
            repeats,
            warmup=1,
        )


def _decode(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(as_rgb(image))


def _make_model_folder(name: str, size: int, folder: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(f"isomax_{name}", num_classes=10).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)  # as after some training
    with torch.no_grad():
        logits = model(torch.randn(20, 3, size, size))
    calibration = Calibration.fit(logits, logits.argmax(dim=1), alpha=0.1)
    config = {"input_size": (3, size, size)}
    return save_model(model, folder, data_config=config, calibration=calibration)


def _make_photographs(folder: Path, count: int = 64) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(_photograph(generator, 375, 500))
        image.save(folder / f"{number:02}.jpg", quality=90)
    return folder


def _photograph(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
    grain = generator.integers(-8, 9, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)
