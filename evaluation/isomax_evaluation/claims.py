"""The IsoMax papers' claims with our numbers: small tables, and the page that is made of them."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from isomax_adapters.onnx import export
from isomax_adapters.pytorch_ood import Parts, detectors_for
from isomax_adapters.timm import load_model
from isomax_evaluation.errors import InputError
from isomax_evaluation.extraction import fit
from isomax_evaluation.intervals import METRICS
from isomax_evaluation.losses import LOSSES
from isomax_evaluation.outputs import run_folder, write_json, write_whole
from isomax_evaluation.report import needs

#: the detector that a paper pairs with a loss; the one to look at in a table of losses
OWN_SCORE = {
    "softmax": "MaxSoftmax",
    "isomax": "EntropicScore",
    "isomax+": "MinimumDistanceScore",
    "dismax": "MaxMeanLogitEntropyScore",
    "dismax+fpr": "MaxMeanLogitEntropyScore",
}
PIXELS, BATCH = 32, 50


def gather(outputs: Sequence[Path], folder: Path) -> None:
    """Put the results of several comparisons into small tables.

    :param outputs: output folders of ``isomax compare``, the main one first
    :param folder: gets ``detection.csv``, ``costs.csv``, ``inference.csv`` and ``setting.json``
    :raises InputError: if a folder is no finished comparison
    """
    tables = []
    for output in outputs:
        if not (output / "results.csv").is_file():
            raise InputError(f"{output} holds no finished comparison; run isomax compare first")
        settings = json.loads((output / "settings.json").read_text())
        per_class = settings["images"][Path(settings["id"]).name] // len(settings["class_names"])
        table = pd.read_csv(output / "results.csv")
        table.insert(0, "per_class", per_class)
        table.insert(0, "epochs", settings["recipe"]["epochs"])
        table.insert(0, "model", settings["model"])
        tables.append(table)
    detection = pd.concat(tables).round(5)
    main, settings = outputs[0], json.loads((outputs[0] / "settings.json").read_text())
    setting = {
        "id": Path(settings["id"]).name,
        "ood": {name: settings["images"][name] for name in tables[0]["ood"].unique()},
        "ood_as_given": settings["ood"],
        "test_images": settings["images"]["id test"],
        "recipe": settings["recipe"],
        "machine": f"{torch.get_num_threads()} threads of {_processor()}",
        "versions": {name: version(name) for name in ("torch", "timm", "pytorch-ood", "isomax")},
    }
    intervals = pd.read_csv(main / "intervals.csv").round(5)
    costs = pd.read_csv(main / "costs.csv").round(4)
    inference = measure_inference(main).round(4)
    for name, frame in (
        ("detection", detection),
        ("intervals", intervals),
        ("costs", costs),
        ("inference", inference),
    ):
        write_whole(folder / f"{name}.csv", lambda path, t=frame: t.to_csv(path, index=False))  # type: ignore[misc]
    write_json(folder / "setting.json", setting)


def measure_inference(output: Path, repeats: int = 15) -> pd.DataFrame:
    """What scoring images costs the CPU, side by side: seconds of CPU time per 1,000 images.

    CPU time is what the energy of a computation on the CPU goes with. One thread: several would
    be charged for waiting for each other.

    :param output: of a comparison with the losses softmax and isomax
    :return: runtime, loss, detector and ``cpu_seconds_per_1000``, with the ratio to softmax
        classification in the same runtime
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator)
    pixels = (images.clamp(-2, 2) * 60 + 127).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    functions: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for loss, names in (
        ("softmax", ("MaxSoftmax", "EnergyBased", "ODIN", "Mahalanobis", "MahalanobisODIN")),
        ("isomax", ("EntropicScore",)),
    ):
        model_folder = run_folder(output, loss, 0) / "model"
        model: Any = load_model(model_folder)
        parts, detectors = Parts(model), detectors_for(model, names)
        # what a detector is fitted on does not change what it costs
        labels = torch.arange(BATCH) % model.num_classes
        failed = fit(parts, detectors, [(images, labels)])
        assert not failed, failed
        for name, detector in detectors.items():
            functions["PyTorch", loss, name] = lambda d=detector: d.predict(images)  # type: ignore[misc]
        exported = output / f"{loss}.onnx"
        if not exported.is_file():
            export(model_folder, exported)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )
        own = OWN_SCORE[loss]
        functions["ONNX Runtime", loss, own] = lambda s=session: s.run(None, {"images": pixels})  # type: ignore[misc]
    seconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in functions}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in range(repeats + 2):
        for key, function in functions.items():
            started = time.process_time()
            function()
            if repeat >= 2:
                seconds[key].append(time.process_time() - started)
    torch.set_num_threads(threads)
    rows = []
    for (runtime, loss, detector), measured in seconds.items():
        baseline = (
            median(seconds[runtime, "softmax", "MaxSoftmax"])
            if runtime == "PyTorch"
            else (median(seconds[runtime, "softmax", OWN_SCORE["softmax"]]))
        )
        rows.append(
            {
                "runtime": runtime,
                "loss": loss,
                "detector": detector,
                "cpu_seconds_per_1000": 1000 * median(measured) / BATCH,
                "ratio": median(measured) / baseline,
            }
        )
    return pd.DataFrame(rows)


def write_page(folder: Path, page: Path) -> Path:
    """Make the page of the tables; every number in it comes from them.

    :param folder: what :func:`gather` wrote, and ``paper.csv``
    :param page: the Markdown file to write
    :raises InputError: if a table is missing
    """
    names = ("detection", "intervals", "costs", "inference", "paper")
    if missing := [name for name in names if not (folder / f"{name}.csv").is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; gather them first with --from")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in names}
    setting = json.loads((folder / "setting.json").read_text())
    environment = Environment(
        loader=PackageLoader("isomax_evaluation", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    detection = tables["detection"]
    longest = detection["epochs"].max()
    most = detection["per_class"].max()
    main = detection[(detection["epochs"] == longest) & (detection["per_class"] == most)]
    text = environment.get_template("results.md").render(
        setting=setting,
        model=str(main["model"].iloc[0]),
        seeds=int(main["seed"].nunique()),
        epochs=int(longest),
        per_class=int(most),
        losses=[loss for loss in LOSSES if loss in set(main["loss"])],
        missing=[loss for loss in LOSSES if loss not in set(main["loss"])],
        error=_error_of_a_difference(main, setting["test_images"]),
        accuracy=_accuracy(detection[detection["epochs"] == longest]),
        lengths=_lengths(detection[detection["per_class"] == most]),
        own=_own(main),
        best=_best(main, tables["intervals"]),
        needs=_needs(tables["costs"]),
        inference=tables["inference"].to_dict("records"),
        paper=_paper(tables["paper"], main),
        metrics=METRICS,
        spread=spread,
    )
    write_whole(page, lambda partial: partial.write_text(text, encoding="utf-8"))
    return page


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation, in percent."""
    array = 100 * np.asarray(list(values), dtype=float)
    deviation = f" ± {array.std(ddof=1):.1f}" if len(array) > 1 else ""
    return f"{array.mean():.1f}{deviation}"


def _of_models(detection: pd.DataFrame) -> pd.DataFrame:
    """One row per trained model."""
    return detection.drop_duplicates(["epochs", "per_class", "loss", "seed"])


def _accuracy(detection: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 1: accuracy by examples per class, with the gap to softmax in points."""
    rows = []
    for per_class, group in _of_models(detection).groupby("per_class"):
        by_loss = {loss: part["accuracy"].to_numpy() for loss, part in group.groupby("loss")}
        gap = {
            loss: 100 * float(values.mean() - by_loss["softmax"].mean())
            for loss, values in by_loss.items()
            if "softmax" in by_loss
        }
        rows.append({"per_class": int(str(per_class)), "accuracy": by_loss, "gap": gap})
    return rows


def _error_of_a_difference(main: pd.DataFrame, images: int) -> float:
    """Standard error, in points, of the difference of two accuracies on so many test images."""
    accuracy = float(_of_models(main)["accuracy"].mean())
    return 100 * float(np.sqrt(2 * accuracy * (1 - accuracy) / images))


def _lengths(detection: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy and AUROC of each loss with its own score, by length of training."""
    rows = []
    for (epochs, loss), group in detection.groupby(["epochs", "loss"], sort=False):
        own = group[group["detector"] == OWN_SCORE[str(loss)]]
        rows.append(
            {
                "epochs": int(str(epochs)),
                "loss": loss,
                "seeds": int(group["seed"].nunique()),
                "accuracy": _of_models(group)["accuracy"].to_list(),
                "AUROC": {
                    str(ood): part["AUROC"].to_list()
                    for ood, part in own.groupby("ood", sort=False)
                },
            }
        )
    order = list(LOSSES)
    return sorted(rows, key=lambda row: (row["epochs"], order.index(str(row["loss"]))))


def _own(main: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 4: each loss with the score that its paper pairs with it, per OOD set."""
    rows = []
    for ood, group in main.groupby("ood", sort=False):
        for loss in [loss for loss in LOSSES if loss in set(group["loss"])]:
            part = group[(group["loss"] == loss) & (group["detector"] == OWN_SCORE[loss])]
            metrics = {name: part[name].to_list() for name in METRICS}
            rows.append({"ood": ood, "loss": loss, "detector": OWN_SCORE[loss], **metrics})
    return rows


def _best(main: pd.DataFrame, intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """The three best detectors of each loss on each OOD set."""
    at = intervals.set_index(["ood", "loss", "detector"])
    rows = []
    for (ood, loss), group in main.groupby(["ood", "loss"], sort=False):
        means = group.groupby("detector")["AUROC"].mean().dropna().sort_values(ascending=False)
        top = [
            f"{name} {100 * value:.1f} [{100 * at.loc[(ood, loss, name), 'AUROC low']:.1f}, "
            f"{100 * at.loc[(ood, loss, name), 'AUROC high']:.1f}]"
            for name, value in means.head(3).items()
        ]
        rows.append({"ood": ood, "loss": loss, "top": top, "count": len(means)})
    return rows


def _needs(costs: pd.DataFrame) -> list[dict[str, Any]]:
    """Claim 3: what each detector needs, once per detector."""
    rows = []
    for row in costs.drop_duplicates("detector").itertuples():
        found: dict[str, Any] = {"detector": row.detector, "needs": needs(row)}
        found["passes"] = f"{row.forward:.0f} + {row.backward:.0f}"
        found["time"] = f"{row.relative_time:.2f}"
        rows.append(found)
    return sorted(rows, key=lambda row: (row["needs"] != "nothing", row["detector"].lower()))


def _paper(paper: pd.DataFrame, main: pd.DataFrame) -> list[dict[str, Any]]:
    """The papers' numbers with ours beside them where both exist."""
    names = {"Tiny ImageNet": "tiny-imagenet-200"}
    rows = []
    for row in paper.fillna("").to_dict("records"):
        ours = main[(main["loss"] == row["loss"]) & (main["detector"] == row["detector"])]
        if row["ood"]:
            ours = ours[ours["ood"] == names.get(row["ood"], row["ood"])]
        else:
            ours = _of_models(ours)
        rows.append(row | {"ours": ours[row["metric"]].to_list()})
    return rows


def _processor() -> str:
    found = (
        [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").is_file()
        else []
    )
    return found[0] if found else platform.processor() or platform.machine()
