"""What one shared pass saves against pytorch-ood's own way, measured alternately.

``tox -e one-pass``. A ResNet-18 at 64x64 and JPEG files on disk; each way fits and evaluates the
same detectors on two OOD sets, with the same loaders.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import pytorch_ood.detector as ood
import timm
import timm.data
import torch
from PIL import Image
from pytorch_ood.api import Detector
from pytorch_ood.benchmark import Benchmark
from torch.utils.data import ConcatDataset, DataLoader

from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_evaluation import data
from isomax_evaluation.data.images import Images, Transformed
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.detection.testing.metrics import ood_metrics

NAMES = [
    *("MaxSoftmax", "MaxLogit", "EnergyBased", "Entropy", "GEN", "KLMatching", "Mahalanobis"),
    *("KNN", "RMD", "ViM", "ReAct", "ASH", "SCALE", "ODIN"),
]
CLASSES, TRAIN, TEST, REPEATS = 10, 600, 250, 3


def write_images(folder: Path) -> None:
    """JPEG files of 64x64 pixels: smooth noise with a colour per class."""
    generator = np.random.default_rng(0)
    for name, count in (("train", TRAIN), ("test", TEST), ("near", TEST), ("far", TEST)):
        for index in range(count):
            label = index % CLASSES
            coarse = generator.integers(0, 160, (8, 8, 3)) + 8 * label
            image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((64, 64))
            path = folder / name / f"class{label}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)


class Setting(Benchmark):
    """The same images for both ways."""

    ood_names = ["near", "far"]  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model("resnet18", num_classes=CLASSES).eval()
        config = timm.data.resolve_model_data_config(self.model, {"img_size": 64, "crop_pct": 1.0})
        self.transform = timm.data.create_transform(**config)
        self.sets = {
            name: data.open_images(str(folder / name)) for name in ("train", "test", "near", "far")
        }

    def dataset(self, name: str) -> Transformed:
        images: Images = self.sets[name]
        return Transformed(images if name in ("train", "test") else images.as_ood(), self.transform)

    def loader(self, name: str) -> DataLoader:
        return DataLoader(self.dataset(name), **LOADER)

    def train_set(self) -> Transformed:
        return self.dataset("train")

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[ConcatDataset]:
        return [ConcatDataset([self.dataset("test"), self.dataset(n)]) for n in self.ood_names]


LOADER = {"batch_size": 64, "num_workers": 2}


def by_hand(setting: Setting, names: list[str]) -> list[Detector]:
    """Wired as pytorch-ood's documentation does, sharing what its cache can share."""
    model, fc = setting.model, setting.model.fc

    def encoder(x: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(x), pre_logits=True)

    maps = (model.forward_features, model.forward_head)
    made = {
        "Mahalanobis": lambda: ood.Mahalanobis(encoder),
        "KNN": lambda: ood.KNN(encoder),
        "RMD": lambda: ood.RMD(encoder),
        "ViM": lambda: ood.ViM(encoder, 256, fc.weight, fc.bias),
        "ReAct": lambda: ood.ReAct(*maps),
        "ASH": lambda: ood.ASH(*maps),
        "SCALE": lambda: ood.SCALE(*maps),
    }
    return [made[n]() if n in made else getattr(ood, n)(model) for n in names]


def their_way(setting: Setting, names: list[str]) -> dict[tuple[str, str], float]:
    detectors = by_hand(setting, names)
    for detector in detectors:
        if detector.requires_fit:
            detector.fit(setting.loader("train"))
    rows = setting.evaluate(detectors, LOADER, cache=True)
    setting._representation_cache.clear()
    return {(row["Detector"], row["Dataset"]): row["AUROC"] for row in rows}


def our_way(setting: Setting, names: list[str]) -> dict[tuple[str, str], float]:
    parts = Parts(setting.model)
    detectors = detectors_for(parts, names)
    assert not fit(parts, detectors, setting.loader("train"))
    scores = {n: score(parts, detectors, setting.loader(n))[1] for n in ("test", "near", "far")}
    return {
        (name, ood_name): ood_metrics(scores["test"][name], scores[ood_name][name])["AUROC"]
        for name in names
        for ood_name in setting.ood_names
    }


def peak_megabytes(folder: Path, names: list[str]) -> float:
    """Peak memory of a process that does it our way."""
    command = [sys.executable, __file__, "--memory", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["--memory"]:
        our_way(Setting(Path(sys.argv[2])), sys.argv[3:])
        # getrusage() would count what the parent held when it forked
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder)
        setting = Setting(folder)
        for names in (NAMES[:-1], NAMES):
            seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
            for _ in range(REPEATS):
                found = {}
                for way, function in (("theirs", their_way), ("ours", our_way)):
                    started = time.perf_counter()
                    found[way] = function(setting, names)
                    seconds[way].append(time.perf_counter() - started)
            apart = max(abs(found["ours"][key] - found["theirs"][key]) for key in found["theirs"])
            theirs, ours = (median(seconds[way]) for way in ("theirs", "ours"))
            print(
                f"{len(names)} detectors, {'with' if 'ODIN' in names else 'without'} ODIN: ours "
                f"{ours:.1f} s, pytorch-ood's {theirs:.1f} s, ratio {ours / theirs:.3f}; AUROCs "
                f"apart by at most {apart:.1e}",
                flush=True,
            )
        alone = {name: peak_megabytes(folder, [name]) for name in NAMES}
        largest = max(alone, key=lambda name: alone[name])
        together, without_odin = (peak_megabytes(folder, n) for n in (NAMES, NAMES[:-1]))
        print(
            f"peak memory: {alone['MaxSoftmax']:.0f} MB with MaxSoftmax alone, "
            f"{alone[largest]:.0f} MB with {largest} alone, which takes most of all, "
            f"{without_odin:.0f} MB with all but ODIN, {together:.0f} MB with all"
        )


if __name__ == "__main__":
    main()
