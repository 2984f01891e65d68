"""Whether the false-alarm rate that is promised is kept, with every detector.

``tox -e guarantee -- --model SOURCE --id FOLDER``: detectors are fitted on some training images;
others, which neither model nor detector has seen, are divided 200 times into those that calibrate
and fresh ones. Of each detector the mean share of fresh images that is rejected, against alpha and
three standard errors; one division goes through its exported file, whose verdicts are compared.
Exit status 1 if a mean is above, or a verdict differs.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from isomax.calibration import Calibration
from isomax_adapters.onnx import export
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import NAMES, Saved, detectors_for, save_detector
from isomax_adapters.runtime.scorer import Scorer
from isomax_adapters.timm import save_model
from isomax_evaluation import data
from isomax_evaluation.cli.terminal import Bars
from isomax_evaluation.data.loading import loader_of
from isomax_evaluation.detection.fitting import fit
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import GivenModel, open_given
from isomax_evaluation.detection.scoring import score

DIVISIONS, ALPHA, THROUGH_THE_FILE = 200, 0.05, 64


def rejected(
    scores: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, name: str, count: int
) -> Iterator[tuple[Calibration, torch.Tensor, float]]:
    """Of each division its calibration, the places of its fresh images, and their share that is
    rejected.

    :param count: how many images calibrate
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIVISIONS):
        order = torch.randperm(len(scores), generator=generator)
        known, fresh = order[:count], order[count:]
        found = Calibration.fit(logits[known], labels[known], name, ALPHA, scores[known])
        yield found, fresh, float(found.rejects(scores[fresh]).double().mean())


def verdicts_differ(
    model: Model, detector: Any, name: str, found: Calibration, pixels: np.ndarray
) -> str:
    """How many verdicts of the exported file differ from PyTorch's, of images that are not within
    rounding of the threshold."""
    config = dict(model.preprocessing or {}) | {"crop_pct": 1.0}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_model(
            model.parts.model, Path(scratch) / "model", model.class_names, config, found,
            also=lambda at: save_detector(detector, Saved(name, {}, model.weights), at),
        )  # fmt: skip
        try:
            scorer = Scorer(export(folder, Path(scratch) / "m.onnx"))
        except ExportError as error:
            return f"no file: {error}"[:60]
        rows = scorer.score(list(pixels))
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    tensors = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        wanted = torch.cat([detector.predict(x).double() for x in tensors.split(16)])
    scores = torch.tensor([row.score for row in rows]).double()
    clear = (wanted - scorer.threshold).abs() > 2 * (scores - wanted).abs().max()
    other = torch.tensor([row.is_ood for row in rows]) != (wanted > scorer.threshold)
    return f"{int((other & clear).sum())} of {len(rows)}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--fit-images", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--calibrating", type=int, default=400)
    parser.add_argument("detectors", nargs="*", default=list(NAMES))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    splits = data.open_splits(given.id)
    size = {"img_size": given.image_size}
    with Bars() as progress:
        model = open_given(
            GivenModel("model", 0, given.model), splits.train, size, None, False, "cpu", progress
        )
    both = data.limit_per_class(splits.train, given.fit_images + given.held_out)
    share = given.held_out / (given.fit_images + given.held_out)
    training, held = data.hold_out(both, share)
    detectors = detectors_for(model.parts, given.detectors)
    assert model.preprocessing is not None
    with Console(stderr=True).status("fitting and scoring"):
        failed = fit(model.parts, detectors, loader_of(model.transform, 1, training), seed=0)
        fitted = {name: d for name, d in detectors.items() if name not in failed}
        outputs, scores, more = score(
            model.parts, fitted, loader_of(model.transform, 1, held), seed=0
        )
    size = model.preprocessing["input_size"]
    resize = timm.data.create_transform(**(dict(model.preprocessing) | {"crop_pct": 1.0}))
    pixels = np.stack(
        [
            np.asarray(resize.transforms[0](held.image(i)).resize(size[:0:-1]))
            for i in range(0, len(held), max(1, len(held) // THROUGH_THE_FILE))
        ]
    )
    table = Table(
        title=f"alpha {ALPHA}; {len(training)} images to fit on, {given.calibrating} calibrate, "
        f"{len(held) - given.calibrating} fresh, {DIVISIONS} divisions",
        title_justify="left",
    )
    for column in ("detector", "mean rejected", "alpha + 3 s.e.", "", "verdicts of the file"):
        table.add_column(column)
    wrong = 0
    for name in track(given.detectors, console=Console(stderr=True)):
        if name not in scores:
            reason = failed.get(name) or more.get(name) or "cannot work on this model"
            table.add_row(name, "", "", reason[:40], "")
            continue
        cases = list(
            rejected(scores[name], outputs.logits, outputs.labels, name, given.calibrating)
        )
        rates = np.array([rate for *_, rate in cases])
        bound = ALPHA + 3 * rates.std(ddof=1) / np.sqrt(len(rates))
        verdicts = "not in a file"
        if obstacle_to_export(name, model.parts, size) is None:
            verdicts = verdicts_differ(model, fitted[name], name, cases[0][0], pixels)
        bad = rates.mean() > bound or not verdicts.startswith(("0 of", "no"))
        wrong += bad
        table.add_row(name, f"{rates.mean():.4f}", f"{bound:.4f}", "!" * bad, verdicts)
    Console(width=140).print(table)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
