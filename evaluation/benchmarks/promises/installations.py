"""What an installation with one extra promises: it imports, runs, and says what is missing.

``tox -e part-none,part-timm,...``, each in an environment that has just that. Prints the row of the
README's table: packages, megabytes to download and installed, and the processor time that an import
takes.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

IMPORTS = {
    "none": "isomax_adapters.runtime.scorer",
    "timm": "isomax_adapters.timm",
    "train": "isomax_evaluation.training.train",
    "onnx": "isomax_adapters.onnx.exporting",
    "mlflow": "isomax_adapters.mlflow",
    "report": "isomax_evaluation.comparison.report.plots",
    "all": "isomax_evaluation.comparison.compare",
}

OURS = ("isomax", "pip", "setuptools", "wheel")  # there anyway


def isomax(*arguments: object, status: int = 0) -> str:
    """Run the command; what it says on both streams."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "isomax"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stderr}"
    return done.stdout + done.stderr


def lacks(needed: str, *arguments: object) -> None:
    """A command that takes more says so in its only line."""
    said = isomax(*arguments, status=2).splitlines()
    assert len(said) == 1, said
    assert f"pip install '.[{needed}]'" in said[0], said


def folder_of_images(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for number, name in enumerate(("ash", "birch")):
        (root / name).mkdir(parents=True)
        for index in range(60):
            pixels = generator.normal(60 + 120 * number, 40, (24, 24, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


def none(scratch: Path) -> None:
    assert "score" in isomax("--help")
    assert "CPUExecutionProvider" in isomax("list", "providers")
    lacks("train", "train", "--data", scratch)
    lacks("onnx,report", "compare")


def timm(scratch: Path) -> None:
    import timm as models
    import torch

    from isomax import EntropicScore, IsoMaxLoss
    from isomax_adapters.pytorch_ood import detectors_for
    from isomax_adapters.timm import attach, load_model, save_model

    model = attach(models.create_model("test_resnet", num_classes=3), head="isomax")
    images, labels = torch.randn(60, 3, 64, 64), torch.arange(60) % 3
    IsoMaxLoss()(model(images), labels).backward()
    model.eval()
    assert EntropicScore(model)(images).shape == (60,)
    batches = [(images, labels)]
    for detector in detectors_for(model, ["KNN", "MahalanobisPP", "OpenMax"]).values():
        assert detector.fit(batches).predict(images).shape == (60,)
    load_model(save_model(model, scratch / "model", ["a", "b", "c"]))
    lacks("train", "train", "--data", scratch)


def train(scratch: Path) -> None:
    photos = folder_of_images(scratch / "photos")
    short = ("--model", "test_resnet", "--image-size", 32, "--recipe", "scratch", "--epochs", 1)
    isomax("train", "--data", photos, *short, "--val-share", 0.4, "--no-track", "--output",
           scratch / "run")  # fmt: skip
    isomax("calibrate", scratch / "run", "--id", photos, "--detector", "KNN", "--output",
           scratch / "model")  # fmt: skip
    said = isomax("train", "--data", photos, *short, "--output", scratch / "other", status=2)
    assert "--no-track" in said
    lacks("onnx", "export", scratch / "model", scratch / "model.onnx")


def onnx(scratch: Path) -> None:
    import timm as models
    import torch

    from isomax.calibration import Calibration
    from isomax_adapters.onnx import export
    from isomax_adapters.runtime.scorer import Scorer
    from isomax_adapters.timm import save_model

    torch.manual_seed(0)
    model = models.create_model("isomax_test_resnet", num_classes=3).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)
    with torch.no_grad():
        logits = model(torch.randn(30, 3, 160, 160))
    calibration = Calibration.fit(logits, logits.argmax(dim=1), alpha=0.1)
    folder = save_model(model, scratch / "model", ["a", "b", "c"], calibration=calibration)
    scorer = Scorer(export(folder, scratch / "model.onnx"))
    assert not scorer.score(np.zeros((50, 60, 3), np.uint8))[0].error


def mlflow(scratch: Path) -> None:
    from isomax_adapters import mlflow as isomax_mlflow

    assert isomax_mlflow.FLAVOR_NAME == "isomax"
    lacks("train", "train", "--data", scratch)


def report(scratch: Path) -> None:
    lacks("onnx", "compare", "--no-track")


def everything(scratch: Path) -> None:
    said = isomax("compare", "--losses", "softmax", "--seeds", 1, "--epochs", 1, "--detectors",
                  "MaxSoftmax,Mahalanobis", "--output", scratch / "out")  # fmt: skip
    assert "MLflow: mlflow ui" in said
    isomax("score", scratch / "out/chosen.onnx", scratch / "out/samples")


def of_children() -> float:
    """Seconds of the processor, which other processes change least."""
    times = os.times()
    return times.children_user + times.children_system


def to_download(extra: str) -> int:
    """Bytes of the files that pip would take; asks for their sizes only."""
    asked = str(Path(__file__).parents[3]) + ("" if extra == "none" else f"[{extra}]")
    said = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
         "--report", "-", asked],
        stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    total = 0
    for one in json.loads(said)["install"]:
        if one["metadata"]["name"] not in OURS:
            with urlopen(Request(one["download_info"]["url"], method="HEAD")) as answer:
                total += int(answer.headers["Content-Length"])
    return total


def main() -> int:
    extra = sys.argv[1].removeprefix("part-")
    with tempfile.TemporaryDirectory() as scratch:
        {"all": everything}.get(extra, globals().get(extra))(Path(scratch))  # type: ignore[misc]
    found = {d.metadata["Name"]: d for d in distributions() if d.metadata["Name"] not in OURS}
    size = sum(
        file.stat().st_size
        for one in found.values()
        for file in (Path(str(path.locate())) for path in one.files or ())
        if file.is_file()
    )
    for _ in range(2):  # the first one compiles
        before = of_children()
        subprocess.run([sys.executable, "-c", f"import {IMPORTS[extra]}"], check=True)
        seconds = of_children() - before
    megabytes = [f"{number / 1e6:,.0f}" for number in (to_download(extra), size)]
    print(f"| `{extra}` | {len(found)} | {' | '.join(megabytes)} | {seconds:.1f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
