"""Comparisons put together into the small tables that the page of results is made of."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evaluation.benchmarks.claims.fine_tuning import gather_fine_tuning, starts_trained
from evaluation.benchmarks.claims.inference_cost import measure_inference
from isomax_adapters.pytorch_ood import NAMES
from isomax_adapters.timm import load_model
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import read_json, write_json
from isomax_evaluation.output.folders import run_folder
from isomax_evaluation.output.tables import read_table, write_table
from isomax_evaluation.training.recipes import closest_recipe


def gather(outputs: Sequence[Path], folder: Path) -> None:
    """Put the results of several comparisons into small tables.

    :param outputs: output folders of ``isomax compare``, the main one first; the others with
        other lengths of training or fewer images per class, or from a pretrained backbone
    :param folder: gets ``finetuning.csv`` and ``finetuning.json`` of those from a pretrained
        backbone, and ``detection.csv``, ``intervals.csv``, ``costs.csv``, ``inference.csv`` and
        ``setting.json``; the last four of the main comparison
    :raises InputError: if a folder is no finished comparison
    """
    if missing := [str(o) for o in outputs if not (o / "results.csv").is_file()]:
        raise InputError(
            f"{', '.join(missing)}: no finished comparison there; run isomax compare first"
        )
    all_settings = [read_json(output / "settings.json") for output in outputs]
    tuned: list[tuple[Path, dict[str, Any]]] = []
    plain: list[tuple[Path, dict[str, Any]]] = []
    for output, given in zip(outputs, all_settings, strict=True):
        (tuned if starts_trained(given) else plain).append((output, given))
    if tuned:
        frame = gather_fine_tuning([output for output, _ in tuned])
        write_table(folder / "finetuning.csv", frame)
        commands = [_command(given, given) for _, given in tuned]
        write_json(folder / "finetuning.json", {"commands": commands})
    if plain:
        _gather_plain(plain, folder)


def _gather_plain(compared: Sequence[tuple[Path, dict[str, Any]]], folder: Path) -> None:
    tables = []
    for output, given in compared:
        table = read_table(output / "results.csv")
        table.insert(0, "per_class", _per_class(given))
        table.insert(0, "epochs", given["recipe"]["epochs"])
        table.insert(0, "model", given["model"])
        tables.append(table)
    main, first = compared[0]
    model = load_model(run_folder(main, first["losses"][0], 0) / "model")
    setting = {
        "id": Path(first["id"]).name,
        "ood": {name: first["images"][name] for name in tables[0]["ood"].unique()},
        "test_images": first["images"]["id test"],
        "scored_images": first["images"]["id scored"],
        "per_class": _per_class(first),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": first["recipe"],
        "commands": [_command(given, first) for _, given in compared],
        "machine": f"{torch.get_num_threads()} thread of {_processor()}",
        "versions": {name: version(name) for name in ("torch", "timm", "pytorch-ood", "isomax")},
    }
    for name, frame in (
        ("detection", pd.concat(tables).round(5)),
        ("intervals", read_table(main / "intervals.csv").round(5)),
        ("costs", read_table(main / "costs.csv").round(4)),
        ("inference", measure_inference(main, first["losses"]).round(4)),
    ):
        write_table(folder / f"{name}.csv", frame)
    write_json(folder / "setting.json", setting)


def _per_class(settings: dict[str, Any]) -> int:
    count: int = settings["images"][Path(settings["id"]).name]
    return count // len(settings["class_names"])


def _command(settings: dict[str, Any], main: dict[str, Any]) -> str:
    """The ``isomax compare`` that a comparison was made with, but for folders."""
    parts = [f"--id {_without_folders(settings['id'])}"]
    parts += [f"--ood {_without_folders(name)}" for name in settings["ood"]]
    parts.append(f"--model {settings['model']}")
    if settings["small_images"]:
        parts.append("--small-images")
    if settings.get("weights"):
        parts.append("--weights FILE")
    if settings.get("pretrained"):
        parts.append("--pretrained")
    if starts_trained(settings) and settings["image_size"]:
        parts.append(f"--image-size {settings['image_size']}")
    parts += _recipe_options(settings["recipe"])
    if _per_class(settings) < _per_class(main) or starts_trained(settings):
        parts.append(f"--images-per-class {_per_class(settings)}")
    chosen = settings["detectors"]
    parts.append(f"--losses {','.join(settings['losses'])}")
    parts.append(f"--seeds {settings['seeds']}")
    parts.append(f"--detectors {'all' if set(chosen) == set(NAMES) else ','.join(chosen)}")
    images = settings["images"]
    scored = max(images[name] for name in ("id scored", *settings.get("ood_names", ())))
    if images["id scored"] < images["id test"] or starts_trained(settings):
        parts.append(f"--test-images {scored}")
    return "isomax compare " + " ".join(parts)


def _without_folders(name: str) -> str:
    """A dataset's name as it is (``torch/mnist``), and of a folder its last part."""
    is_folder = Path(name).is_absolute() or Path(name).exists()
    return Path(name).name if is_folder else name


def _recipe_options(recipe: dict[str, Any]) -> list[str]:
    """The named recipe that is closest, and options for what differs from it."""
    closest, differing = closest_recipe(recipe)
    return [f"--recipe {closest}", *(_option(key, recipe.get(key)) for key in differing)]


def _option(key: str, value: Any) -> str:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def _processor() -> str:
    """As Linux names it; elsewhere as Python does."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return found[0] if found else platform.processor() or platform.machine()
