"""What scoring with an exported file costs: ratios measured in one process, in turns."""

import platform
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from isomax_adapters.runtime import Scorer
from isomax_adapters.runtime.decoding import Decoding, from_array, open_image
from isomax_adapters.runtime.resizing import to_size_of_graph
from isomax_evaluation.data.listing.files import find_images
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.speed.timing import alternate

Rows = list[tuple[str, str, str]]

BATCH = 16
SIZES = ((375, 500), (500, 333), (427, 640), (333, 500), (480, 640))  # of photographs made here


def measure(path: Path, images: Path | None = None, quick: bool = False) -> tuple[str, Rows]:
    """What an exported file takes to score images, one by one and in batches, on this machine.

    :param images: a folder of images to score; without it, 160 JPEGs of several sizes made here
    :param quick: fewer repetitions
    :raises InputError: if the folder has no images
    :raises ModelError: if the file was not exported by isomax
    """
    scorer = Scorer(path)
    with tempfile.TemporaryDirectory() as scratch:
        files = images_to_score(images, Path(scratch))
        scoring = scoring_seconds(scorer, files, 3 if quick else 5)
    return title_of(path.name, scorer.threads), rows_of(scoring, len(files))


def images_to_score(images: Path | None, scratch: Path) -> list[str]:
    files = list(find_images([images] if images else [_make_photographs(scratch / "p")]))
    if not files:
        raise InputError(f"there are no images in {images}")
    return files


def title_of(what: str, threads: int) -> str:
    return (
        f"{what}, batch {BATCH}; {platform.machine()}, {threads} threads, onnxruntime "
        f"{onnxruntime.__version__}, medians of alternating runs"
    )


def rows_of(seconds: dict[str, float], count: int) -> Rows:
    """What was measured, milliseconds per image, and in relation to uniform batches."""
    uniform = seconds["uniform"]

    def share(name: str) -> str:
        return f"{uniform / seconds[name]:.2f}x the throughput of uniform batches"

    measured = (
        (f"decoding {count} files", "decoding", ""),
        ("uniform batches of the model's size", "uniform", "1"),
        ("decoded images of their own sizes", "decoded", share("decoded")),
        ("the files", "folder", share("folder")),
    )
    return [(name, f"{1000 * seconds[of] / count:.2f}", ratio) for name, of, ratio in measured]


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


def _make_photographs(folder: Path, count: int = 160) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(photograph(generator, *SIZES[number % len(SIZES)]))
        image.save(folder / f"{number:03}.jpg", quality=90)
    return folder


def photograph(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=int)
    grain = generator.integers(-8, 9, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)
