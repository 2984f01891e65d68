"""Damaged images and damaged models: no crash, no hang, a row each.

``tox -e damaged [-- IMAGES [MODELS]]``: by default 10,000 images, made of one of each kind that is
read, scored by the command into a table; and 1,000 model files, each opened and given an image in a
process that is killed if it says nothing for a minute. Exit status 1 if anything is amiss.
"""

import csv
import io
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from tests.adapters.onnx.make_model import build

IMAGES, MODELS, PATIENCE = 10_000, 1_000, 60  # seconds
KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG, progressive": ("RGB", "JPEG", {"progressive": True}),
    "JPEG, CMYK": ("CMYK", "JPEG", {}),
    "JPEG, grey": ("L", "JPEG", {}),
    "PNG": ("RGB", "PNG", {}),
    "PNG, palette": ("P", "PNG", {}),
    "PNG, RGBA": ("RGBA", "PNG", {}),
    "PNG, 16 bits": ("I;16", "PNG", {}),
    "GIF": ("P", "GIF", {}),
    "GIF, moving": ("P", "GIF", {"save_all": True}),
    "WebP": ("RGB", "WEBP", {}),
    "WebP, moving": ("RGB", "WEBP", {"save_all": True}),
    "TIFF": ("RGB", "TIFF", {"compression": "raw"}),
    "TIFF, LZW": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF, JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
    "TIFF, two levels": ("1", "TIFF", {"compression": "tiff_deflate"}),
    "BMP": ("RGB", "BMP", {}),
    "PPM": ("RGB", "PPM", {}),
}

OPEN_EACH = """
import sys, warnings
import numpy as np
from isomax_adapters.runtime.scorer import ModelError, Scorer
warnings.simplefilter("ignore")
image = np.zeros((20, 30, 3), dtype=np.uint8)
for path in sys.stdin.read().split():
    try:
        error = Scorer(path, threads=1).score([image])[0].error  # of damaged weights, NaN
        outcome = "wrong" if error and not error.startswith("the network gave") else "scored"
    except ModelError as error:
        text = str(error)
        outcome = "refused" if "\\n" not in text and len(text) < 1000 else "long"
    except BaseException as error:
        outcome = type(error).__name__
    print("outcome", path, outcome, flush=True)
"""


def originals() -> dict[str, bytes]:
    """An image of each kind."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    frames = [coarse.resize((64, 48)), coarse.resize((64, 48), Image.Resampling.NEAREST)]
    found = {}
    for name, (mode, kind, options) in KINDS.items():
        first, second = (
            Image.fromarray(np.asarray(frame.convert("L")).astype(np.uint16) * 257)
            if mode == "I;16"
            else frame.convert(mode)
            for frame in frames
        )
        if "save_all" in options:
            options = options | {"append_images": [second]}
        file = io.BytesIO()
        first.save(file, kind, **options)  # type: ignore[arg-type]
        found[name] = file.getvalue()
    return found


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes changed, taken out, put in, repeated, or the end cut off."""
    data = np.frombuffer(content, dtype=np.uint8)
    for _ in range(generator.integers(1, 4)):
        at = int(generator.integers(0, len(data)))
        length = int(generator.integers(1, 1 + min(64, len(data) - at)))
        match generator.integers(0, 7):
            case 0 | 1:  # anywhere
                data = data.copy()
                places = generator.integers(0, len(data), generator.integers(1, 12))
                data[places] = generator.integers(0, 256, len(places))
            case 2:  # where formats have their sizes and offsets
                data = data.copy()
                places = generator.integers(0, min(96, len(data)), generator.integers(1, 5))
                data[places] = generator.choice([0, 1, 127, 128, 255], len(places))
            case 3:
                data = data[: max(1, int(len(data) * generator.uniform(0.02, 1)))]
            case 4:
                data = np.delete(data, slice(at, at + length)) if len(data) > length else data
            case 5:
                data = np.insert(data, at, generator.integers(0, 256, length))
            case 6:
                data = np.insert(data, at, data[at : at + length])
    return data.astype(np.uint8).tobytes()


def check_images(model: Path, count: int, scratch: Path) -> list[str]:
    """What was wrong with the scoring of so many."""
    folder, out = scratch / "images", scratch / "out.csv"
    folder.mkdir()
    generator, seeds = np.random.default_rng(1), originals()
    names = sorted(seeds)
    for number in track(range(count), "damaging images"):
        kind = names[number % len(names)]
        (folder / f"{number:06}.jpg").write_bytes(mutated(seeds[kind], generator))
    command = [sys.executable, "-X", "faulthandler", "-m", "isomax_evaluation", "score"]
    done = subprocess.run(
        [*command, model, folder, "--out", out],
        capture_output=True,
        text=True,
        timeout=PATIENCE + count,  # a second each
    )
    problems = []
    if done.returncode not in (0, 1):
        return [f"exit status {done.returncode}: {done.stderr[-1000:]}"]
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [f"{number:06}.jpg" for number in range(count)]
    if sorted(Path(row["source"]).name for row in rows) != expected:
        problems.append(f"{len(rows)} rows for {count} images")
    by_kind = Counter(
        (names[int(Path(row["source"]).stem) % len(names)], bool(row["error"])) for row in rows
    )
    for name in names:
        print(f"{name:18} {by_kind[name, False]:6} scored {by_kind[name, True]:6} refused")
    odd = [r for r in rows if not r["error"] and not np.isfinite(float(r["score"]))]
    problems += [f"{row['source']}: score {row['score']}" for row in odd]
    return problems


def check_models(model: Path, count: int, scratch: Path) -> list[str]:
    """What was wrong with so many damaged files of a model."""
    content, generator = model.read_bytes(), np.random.default_rng(2)
    paths = []
    for number in range(count):
        paths.append(scratch / f"{number:05}.onnx")
        paths[-1].write_bytes(mutated(content, generator))
    outcomes: dict[str, str] = {}
    rest = list(map(str, paths))
    for _ in track(range(count), "opening damaged models"):
        if not rest:
            break
        outcomes |= dict(_opened(rest))
        rest = [path for path in rest if path not in outcomes]
    print(dict(Counter(outcomes.values())))
    fine = ("scored", "refused")
    return [f"{path}: {outcome}" for path, outcome in outcomes.items() if outcome not in fine]


def _opened(paths: list[str]) -> Iterator[tuple[str, str]]:
    """What came of each, up to the first that ended the process or hung it."""
    worker = subprocess.Popen(
        [sys.executable, "-c", OPEN_EACH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    assert worker.stdin is not None
    assert worker.stdout is not None
    stdout = worker.stdout

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    worker.stdin.write("\n".join(paths))
    worker.stdin.close()
    left = list(paths)
    try:
        while left:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                yield left[0], "hung"
                return
            if not line:
                yield left[0], f"ended with {worker.wait()}"
                return
            word, *rest = line.split()
            if word != "outcome":
                yield left[0], f"printed {line.strip()[:100]!r}"
                return
            yield left.pop(0), rest[1]
    finally:
        worker.kill()
        worker.wait()


def main() -> int:
    given = list(map(int, sys.argv[1:3]))
    images, models = given + [IMAGES, MODELS][len(given) :]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = scratch / "colours.onnx"
        model.write_bytes(build().SerializeToString())
        problems = check_images(model, images, scratch) + check_models(model, models, scratch)
    for problem in problems:
        print(problem)
    print(f"{images} images, {models} models: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
