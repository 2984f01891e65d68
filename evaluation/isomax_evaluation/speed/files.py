"""What an exported file costs: ratios measured in one process, in turns."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from isomax_adapters.runtime import Scorer
from isomax_adapters.runtime.decoding import Decoding, from_array, open_image
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_adapters.timm import load_model, save_model
from isomax_evaluation.data.listing.files import find_images
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.speed.timing import alternate

MODEL, BATCH, THREADS = "resnet18", 16, 2
SIZES = ((375, 500), (500, 333), (427, 640), (333, 500), (480, 640))  # of photographs made here


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
        files = _files(images, Path(scratch))
        folder = _make_model_folder(model, size, Path(scratch) / "model")
        graph = graph_seconds(folder, size, Path(scratch), repeats)
        scorer = Scorer(Path(scratch) / "fp32.onnx", threads=THREADS)
        scoring = scoring_seconds(scorer, files, max(3, repeats // 5))
    table = _table(f"{model} at {size} pixels", THREADS)
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
    _add_scoring(table, scoring, len(files))
    return table


def measure_file(path: Path, images: Path | None = None, quick: bool = False) -> Table:
    """What an exported file takes to score images, one by one and in batches, on this machine.

    :param images: as :func:`measure` has it
    :raises InputError: if the folder has no images
    :raises ModelError: if the file was not exported by isomax
    """
    scorer = Scorer(path)
    with tempfile.TemporaryDirectory() as scratch:
        files = _files(images, Path(scratch))
        scoring = scoring_seconds(scorer, files, 3 if quick else 5)
    table = _table(path.name, scorer.threads)
    _add_scoring(table, scoring, len(files))
    return table


def _files(images: Path | None, scratch: Path) -> list[str]:
    files = list(find_images([images] if images else [_make_photographs(scratch / "p")]))
    if not files:
        raise InputError(f"there are no images in {images}")
    return files


def _table(what: str, threads: int) -> Table:
    table = Table(
        title=f"{what}, batch {BATCH}; {platform.machine()}, {threads} threads, onnxruntime "
        f"{onnxruntime.__version__}, torch {torch.__version__}, medians of alternating runs",
        title_justify="left",
    )
    for column in ("", "ms per image", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _add_scoring(table: Table, seconds: dict[str, float], count: int) -> None:
    uniform = seconds["uniform"]

    def share(name: str) -> str:
        return f"{uniform / seconds[name]:.2f}x the throughput of uniform batches"

    for name, what, ratio in (
        (f"decoding {count} files", "decoding", ""),
        ("uniform batches of the model's size", "uniform", "1"),
        ("decoded images of their own sizes", "decoded", share("decoded")),
        ("the files", "folder", share("folder")),
    ):
        table.add_row(name, f"{1000 * seconds[what] / count:.2f}", ratio)


def graph_seconds(folder: Path, size: int, scratch: Path, repeats: int) -> dict[str, float]:
    """Seconds per batch of ``bare`` (the network alone), ``torch`` (the same, eager) and the whole
    file in every precision, which stay in ``scratch``; its images have the size that the Scorer
    gives them."""
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
        config = scorer.metadata["preprocessing"]
        ready = np.stack([to_size_of_graph(from_array(image), config) for image in pixels])
        runs[precision] = partial(scorer.run, ready)
    tensors = torch.from_numpy(floats)
    runs["torch"] = lambda: model(tensors)
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        # each of these has threads of its own, which spin for a while after a run
        return alternate(runs, repeats, pause=0.05)


def scoring_seconds(scorer: Scorer, files: Sequence[str], repeats: int) -> dict[str, float]:
    """Seconds for all files: ``decoding`` alone; the network on ``uniform`` batches of them, made
    the model's size beforehand; on the ``decoded`` images; and ``folder``, all of it."""
    config = scorer.metadata["preprocessing"]
    with ThreadPoolExecutor(scorer.threads) as pool:
        decode = partial(_decode, decoding=scorer.decoding)
        decoded = list(pool.map(decode, files))
        ready = [to_size_of_graph(from_array(image), config) for image in decoded]
        batches = [np.stack(ready[at : at + BATCH]) for at in range(0, len(ready), BATCH)]
        return alternate(
            {
                "decoding": lambda: list(pool.map(decode, files)),
                "uniform": lambda: [scorer.run(batch) for batch in batches],
                "decoded": lambda: list(scorer.stream(decoded, BATCH)),
                "folder": lambda: list(scorer.stream(files, BATCH)),
            },
            repeats,
            warmup=1,
            pause=0.05,
        )


def _decode(path: str, decoding: Decoding) -> np.ndarray:
    with open_image(path) as image:
        return decoding.array(image)


def _make_model_folder(name: str, size: int, folder: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(f"isomax_{name}", num_classes=10).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)  # as after some training
    with torch.no_grad():
        logits = model(torch.randn(20, 3, size, size))
    calibration = Calibration.fit(logits, logits.argmax(dim=1), alpha=0.1)
    config = {"input_size": (3, size, size)}
    return save_model(model, folder, data_config=config, calibration=calibration)


def _make_photographs(folder: Path, count: int = 160) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(_photograph(generator, *SIZES[number % len(SIZES)]))
        image.save(folder / f"{number:03}.jpg", quality=90)
    return folder


def _photograph(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
    grain = generator.integers(-8, 9, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)
