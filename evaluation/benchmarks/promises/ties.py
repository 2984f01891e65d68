"""Whether the false-alarm rate is kept where scores tie: in PyTorch, in a file, in a browser's
runtime.

``tox -e promise [-- DETECTOR...]``: of a network that is certain of most images 800 images, 120 of
them one black frame and 80 each there twice, are scored by PyTorch together, by an exported file
one by one, and by onnxruntime-web in Node.js, if ``NODE_PATH`` has that. They are divided 200
times into those that calibrate, by the file's own scores of what is kept of them, and fresh ones.
Of each the mean share of fresh images that is rejected, against alpha and three standard errors;
exit status 1 if one is above.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.exporting import scored_network
from isomax_adapters.onnx.opening import open_folder
from isomax_adapters.onnx.running import OWN
from isomax_adapters.pytorch_ood import Parts, Saved, detectors_for, save_detector
from isomax_adapters.pytorch_ood.digests import digests_of_weights
from isomax_adapters.runtime.decoding import from_array
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import save_model
from isomax_evaluation.detection.fitting import fit

CLASSES, SIDE, ALPHA, DIVISIONS = 5, 64, 0.05, 200
IMAGES, BLACK, TWICE = 800, 120, 80
NAMES = ("GEN", "MaxSoftmax", "EnergyBased", "ViM", "MahalanobisPP", "KNN", "DICE", "OpenMax")
CONFIG: dict[str, Any] = {
    "input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "interpolation": "bicubic",
    "mean": (0.5,) * 3, "std": (0.5,) * 3,
}  # fmt: skip

NODE = """
const ort = require("onnxruntime-web"), fs = require("fs");
(async () => {
  ort.env.wasm.numThreads = 1;
  const [n, h, w] = process.argv[3].split(",").map(Number);
  const pixels = new Uint8Array(fs.readFileSync(process.argv[2]));
  const session = await ort.InferenceSession.create(fs.readFileSync(process.argv[4]));
  const found = {score: [], p_value: [], is_ood: []};
  for (let i = 0; i < n; i++) {
    const one = pixels.slice(i * h * w * 3, (i + 1) * h * w * 3);
    const out = await session.run({images: new ort.Tensor("uint8", one, [1, h, w, 3])});
    for (const name in found) found[name].push(Number(out[name].data[0]));
  }
  console.log(JSON.stringify(found));
})();
"""


def photographs(count: int, seed: int) -> list[np.ndarray]:
    """Smooth shapes and grain."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=int)
        grain = generator.integers(-10, 11, image.shape)
        found.append(np.clip(image + grain, 0, 255).astype(np.uint8))
    return found


def with_ties(count: int, black: int, twice: int) -> list[np.ndarray]:
    """So many images, of which some are one black frame, and some there twice."""
    images = photographs(count - black - twice, seed=1)
    return [np.zeros_like(images[0])] * black + images + images[:twice]


def tensors_of(images: Sequence[np.ndarray]) -> torch.Tensor:
    transform = timm.data.create_transform(**CONFIG)
    return torch.stack([transform(from_array(image)) for image in images])


def confident_network() -> tuple[Parts, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network that is certain of most images, as after some training with softmax; and batches
    to fit detectors on."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    pixels = tensors_of(photographs(150, seed=0))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of these images
        model(pixels)
        model.eval()
        features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        mean = features.mean(dim=0)
        spread = (features - mean).norm(dim=1).mean()
        directions = torch.nn.functional.normalize(features[:CLASSES] - mean)
        classifier = model.get_classifier()
        classifier.weight.copy_(60 / spread * directions)
        classifier.bias.copy_(-classifier.weight @ mean)
        return Parts(model), [(pixels, model(pixels).argmax(dim=1))]


def folder_of(parts: Parts, name: str, batches: Any, images: Any, place: Path) -> tuple[Path, Any]:
    """A model folder whose detector is calibrated on images, in batches; and that detector."""
    (detector,) = detectors_for(parts, [name]).values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not fit(parts, {name: detector}, batches, seed=0)
    with torch.no_grad():
        # together, as a data loader has them; a file is given one after the other
        rows = [parts.logits_and_features(batch) for batch in tensors_of(images).split(32)]
        logits, features = (torch.cat(part) for part in zip(*rows, strict=True))
        kept = features if hasattr(detector, "predict_features") else None
        of_logits = getattr(detector, "predict_logits", None)
        scores = of_logits(logits) if kept is None else detector.predict_features(kept)
    found = Calibration.fit(logits, logits.argmax(dim=1), name, ALPHA, scores.float(), kept)
    saved = Saved(name, {}, digests_of_weights(parts.model).whole)
    folder = save_model(
        parts.model, place / name, list("abcde"), CONFIG, found,
        also=lambda at: save_detector(detector, saved, at),
    )  # fmt: skip
    return folder, detector


def why_no_node() -> str:
    """Why onnxruntime-web cannot be run here; nothing if it can."""
    node = shutil.which("node")
    if node is None:
        return "node is not installed"
    found = subprocess.run([node, "-e", "require('onnxruntime-web')"], capture_output=True)
    return "NODE_PATH has no onnxruntime-web" if found.returncode else ""


def in_node(path: Path, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a file in onnxruntime-web, of images one by one."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "score.js").write_text(NODE)
        (place / "pixels.bin").write_bytes(np.stack(images).tobytes())
        size = ",".join(map(str, np.stack(images).shape[:3]))
        done = subprocess.run(
            ["node", "score.js", "pixels.bin", size, os.path.abspath(path)],
            cwd=place, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}


def rates(
    parts: Parts, name: str, batches: Any, images: list[np.ndarray], place: Path, node: bool
) -> dict[str, np.ndarray]:
    """Where the images are scored -> of each division the share of fresh ones that is rejected."""
    folder, detector = folder_of(parts, name, batches, images, place)
    path = export(folder, place / f"{name}.onnx")
    scorer, opened = Scorer(path), open_folder(folder, "fp32")
    network = scored_network(opened, "fp32", [])
    # as it has calibrated the file: one by one these are the metadata's
    own = network.scores(OWN, opened.calibration.outputs[network.kind].numpy())
    assert np.array_equal(np.sort(own), np.array(scorer.metadata["scores"], np.float32))
    with torch.no_grad():
        pixels = tensors_of(images).split(7)  # otherwise than they calibrated
        scores = {"PyTorch": torch.cat([detector.predict(batch).float() for batch in pixels])}
    scores["file"] = torch.tensor([row.score for row in scorer.score(images, batch_size=1)])
    if node:
        scores["Node"] = torch.from_numpy(in_node(path, images)["score"]).float()
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {runtime: [] for runtime in scores}
    tolerance = scorer.metadata["tolerance"]
    for _ in range(DIVISIONS):
        order = torch.randperm(len(images), generator=generator)
        known, fresh = order[: len(order) // 2], order[len(order) // 2 :]
        at = opened.calibration.with_scores(torch.from_numpy(own)[known], tolerance)
        for runtime, every in scores.items():
            found[runtime].append(float(at.rejects(every[fresh]).double().mean()))
    return {runtime: np.array(values) for runtime, values in found.items()}


def bound(values: np.ndarray) -> float:
    """Alpha and three standard errors of a mean."""
    return float(ALPHA + 3 * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> int:
    names, reason = sys.argv[1:] or NAMES, why_no_node()
    if reason:
        print(f"not in Node: {reason}")
    parts, batches = confident_network()
    images = with_ties(IMAGES, BLACK, TWICE)
    table = Table("detector", "where", "mean rejected", "alpha + 3 s.e.", "")
    above = 0
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            for runtime, values in rates(
                parts, name, batches, images, Path(place), not reason
            ).items():
                bad = bool(values.mean() > bound(values))
                above += bad
                table.add_row(
                    name, runtime, f"{values.mean():.4f}", f"{bound(values):.4f}", "!" * bad
                )
    Console(width=100).print(table)
    return bool(above)


if __name__ == "__main__":
    sys.exit(main())
