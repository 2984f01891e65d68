"""The model card: what a model is, for whoever finds it on the Hugging Face Hub."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from isomax_adapters.timm import load_model
from isomax_adapters.timm.publishing import CARD, UNNAMED
from isomax_evaluation.output.files import read_json, write_whole
from isomax_evaluation.output.tables import read_table
from isomax_evaluation.training.outcome import MEASURED

TOP = 3  # detectors per OOD set
#: fields of a recipe that say how a head is trained alone, and with which augmented copies
OF_THE_HEAD = ("head_first", "head_start", "keep")
AUGMENTING = (
    *("augment_copies", "augment", "hflip", "scale", "color_jitter", "auto_augment", "reprob"),
)


def write_card(run: Path) -> Path:
    """``README.md`` in the model folder of a run, made of what the run's folder holds besides:
    settings, summary, provenance and, if it was compared, its table of results.

    :param run: output folder of a training, or of one model of a comparison
    :raises InputError: if it cannot be written
    """
    folder = run / "model"
    settings, summary, provenance = (
        read_json(run / f"{name}.json") for name in ("settings", "summary", "provenance")
    )
    config = read_json(folder / "config.json")
    calibration = read_json(folder / "calibration.json")
    parts = provenance["datasets"]
    title = f"{config['architecture']}.{parts[0]['name']}"
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    template = files("isomax_evaluation.training") / "templates" / "card.md"
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        card_data=_header(title, config, summary, parts).to_yaml(),
        title=_cell(title),
        architecture=config["architecture"],
        parameters=f"{sum(p.numel() for p in load_model(folder).parameters()):,}",
        loss=settings["loss"],
        source=UNNAMED,
        calibration=calibration,
        guarantee=calibration.get("guarantee", "established"),
        measured=_measured(summary),
        unknown=_unknown(run),
        classes=_classes(settings["class_names"], summary.get("classes", {})),
        parts=parts,
        kept=summary.get("kept", ""),
        start=_start(settings),
        recipe=_recipe(settings["recipe"]),
        versions=provenance["versions"],
    )
    write_whole(folder / CARD, lambda partial: partial.write_text(text, encoding="utf-8"))
    return folder / CARD


def _header(
    title: str, config: dict[str, Any], summary: dict[str, Any], parts: list[dict[str, Any]]
) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=part["name"],
            dataset_name=part["name"],
            dataset_split="test",
            metric_type="accuracy",
            metric_value=round(summary["test_accuracy"], 4),
        )
        for part in parts
        if part["split"] == "test" and "test_accuracy" in summary
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "isomax", "out-of-distribution-detection"],
        metrics=["accuracy"],
        model_name=title,
        eval_results=results or None,
        ignore_metadata_errors=True,
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _measured(summary: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{text}, percent", _percent(summary[key]))
        for key, text in MEASURED.items()
        if key in summary
    ]


def _unknown(run: Path) -> list[dict[str, Any]]:
    path = run / "results.csv"
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for _, group in read_table(path).groupby("ood", sort=False):
        best = group.dropna(subset="AUROC").sort_values("AUROC", ascending=False).head(TOP)
        rows += [
            {"ood": row["ood"], "detector": row["detector"]}
            | {name: _percent(row[name]) for name in ("AUROC", "FPR95TPR")}
            for row in best.to_dict("records")
        ]
    return rows


def _classes(names: list[str], rates: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "images": rates.get(name, {}).get("images", ""),
            "recall": _percent(rates.get(name, {}).get("recall")),
            "false_alarms": _percent(rates.get(name, {}).get("false_alarm_rate")),
        }
        for name in names
    ]


def _start(settings: dict[str, Any]) -> str:
    if settings.get("weights"):
        return f"the weights in `{Path(settings['weights']).name}`"
    if settings.get("pretrained") or ":" in settings["model"]:
        return "timm's pretrained weights"
    return "random weights"


def _recipe(recipe: dict[str, Any]) -> str:
    given = {k: v for k, v in recipe.items() if v not in (None, False, [], 0, 0.0)}
    if not recipe["epochs"]:
        augmenting = AUGMENTING if recipe["augment_copies"] else ()
        given = {k: v for k, v in given.items() if k in (*OF_THE_HEAD, *augmenting)}
        given = {"epochs": 0, "augment": "none"} | given
    return "Recipe: " + ", ".join(f"{key} {value}" for key, value in given.items())


def _cell(text: str) -> str:
    """What a folder may be called, in a table of Markdown."""
    plain = " ".join(str(text).split())
    for special in ("\\", "|", "<", "`", "*", "_", "[", "]"):
        plain = plain.replace(special, "\\" + special)
    return plain
