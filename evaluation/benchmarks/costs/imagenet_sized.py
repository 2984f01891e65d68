"""Fits and scores every detector of logits and features on outputs as large as ImageNet's.

``tox -e imagenet-sized [-- FOLDER]``; the folder gets 15.6 GB of synthetic outputs. Each detector
has a process of its own; anonymous memory is what it has allocated, without mapped files.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from isomax_adapters.pytorch_ood import NAMES, Parts, detectors_for, why_not
from isomax_evaluation.detection.fitting import attempt
from isomax_evaluation.detection.large import fit_outputs, sample_size
from isomax_evaluation.detection.scoring import score_outputs, scores_outputs
from isomax_evaluation.extraction.store import Outputs, OutputsOnDisk

TEST = 10_000


class Network(nn.Module):
    """A linear classifier on features; nothing else of a network is run here."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def make(folder: Path, images: int, width: int, classes: int) -> None:
    """Features around a mean of each class, as after a ReLU, and the network's logits of them."""
    network = Network(width, classes)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, width, generator=generator)
    with torch.no_grad():
        network.fc.weight.copy_(0.05 * means)
        network.fc.bias.zero_()
    torch.save(network.state_dict(), folder / "network.pt")
    for name, count in (("train", images), ("test", TEST)):
        kept = OutputsOnDisk(folder / name, {}, count)
        if kept.read() is not None:
            continue
        with kept, torch.no_grad():
            for start in range(0, count, 8192):
                labels = torch.arange(start, min(start + 8192, count)) % classes
                noise = torch.randn(len(labels), width, generator=generator)
                features = (means[labels] + noise).relu()
                kept.add(network(features), features, labels)


def load(folder: Path, name: str) -> Outputs:
    labels = np.load(folder / name / "labels.npy", mmap_mode="r")
    found = OutputsOnDisk(folder / name, {}, len(labels)).read()
    assert found is not None
    return found


def anonymous() -> int:
    """Bytes of memory of this process that are no mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon")


def measure(folder: Path, name: str) -> dict[str, object]:
    training, test = load(folder, "train"), load(folder, "test")
    network = Network(training.features.shape[1], training.logits.shape[1]).eval()
    network.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
    detector = detectors_for(Parts(network, classifier="fc"), [name])[name]
    sample = sample_size(detector, training) if detector.requires_fit else None
    peak, done = anonymous(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    reason = attempt(lambda: fit_outputs(detector, training)) if detector.requires_fit else None
    fitted = time.perf_counter()
    if reason is None:
        with torch.no_grad():
            reason = attempt(lambda: score_outputs(detector, test))
    scored = time.perf_counter()
    done.set()
    watcher.join()
    return {
        "fit": fitted - started,
        "score": scored - fitted,
        "peak": peak,
        "sample": sample,
        "reason": reason,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--only", help="one detector, in this process")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.folder, given.only)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    make(given.folder, given.images, given.features, given.classes)
    parts = Parts(Network(given.features, given.classes).eval(), classifier="fc")
    left_out = why_not(parts)
    names = [n for n in NAMES if n not in left_out]
    names = [n for n in names if scores_outputs(detectors_for(parts, [n])[n])]
    print(
        f"{given.images} images, {given.features} features, {given.classes} classes, float32 on "
        f"disk; {torch.get_num_threads()} threads"
    )
    print("| detector | fitted on | peak anonymous memory, GiB | fit, s | score 10,000, s |")
    print("|---|---|---|---|---|")
    for name in names:
        command = [sys.executable, __file__, str(given.folder), "--only", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"| {name} | | | | died: {run.returncode} {run.stderr[-200:]!r} |", flush=True)
            continue
        found = json.loads(run.stdout.splitlines()[-1])
        on = f"{found['sample']:,}, drawn at random" if found["sample"] else "all"
        on = found["reason"] or on
        peak = f"{found['peak'] / 2**30:.2f}"
        times = f"{found['fit']:.1f} | {found['score']:.1f}"
        print(f"| {name} | {on} | {peak} | {times} |", flush=True)


if __name__ == "__main__":
    main()
