"""The row of the table that is shipped: chosen, given a threshold, exported."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from isomax_adapters.onnx import export
from isomax_adapters.onnx.scorers import obstacle_to_export
from isomax_adapters.pytorch_ood import why_not
from isomax_evaluation.comparison.runs import Run, RunResults
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.splitting import Split, split_for_calibration
from isomax_evaluation.deployment.equipping import Equipment, ModelBatches, equip, splits_of
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.testing.trial import Trial
from isomax_evaluation.output.errors import InputError, one_line
from isomax_evaluation.output.files import read_json, write_json
from isomax_evaluation.output.folders import run_folder
from isomax_evaluation.output.progress import Progress, warn

FILE, FOLDER, ABOUT = "chosen.onnx", "chosen", "chosen.json"
AT_ONCE = 4096  # rows of outputs
CHANCE = 0.5  # AUROC
COLUMNS = ("loss", "detector", "obstacle", "command")


@dataclass(frozen=True)
class Chosen:
    """A row of the table, as a file; or why there is none."""

    model: str
    seed: int
    detector: str
    by: str  #: what it was chosen by
    error: str = ""  #: why there is no file

    @property
    def described(self) -> str:
        """In words."""
        if not self.detector:
            return f"no row was chosen: {self.error}"
        row = f"{self.detector} on {self.model} (seed {self.seed}), {self.by}"
        return f"no file of {row}: {self.error}" if self.error else row


def split_row(text: str) -> tuple[str, str]:
    """``MODEL/DETECTOR``, whose model may have slashes of its own.

    :raises InputError: if it is none
    """
    model, slash, detector = text.rpartition("/")
    if not slash or not model or not detector:
        raise InputError(f"the row to export is {text!r}; expected MODEL/DETECTOR or LOSS/DETECTOR")
    return model, detector


def obstacle(model: Model, name: str) -> str:
    """Why no file can hold a detector on a model; empty if one can."""
    if model.preprocessing is None:
        return "its images came as finished tensors, so a file would not know how to make them"
    if reason := why_not(model.parts, [name]).get(name):
        return reason
    return obstacle_to_export(name, model.parts, model.preprocessing["input_size"]) or ""


def deployable(
    run: Run,
    model: Model,
    detectors: Sequence[str],
    output: Path,
    id: str,
    options: Sequence[str],
) -> pd.DataFrame:
    """Which rows of a run can be a file, and the commands that make it.

    :param output: the comparison's folder
    :param id: the ID data, as a command takes it
    :param options: of ``isomax calibrate``, without which it would make another file
    :return: a row per detector that works on the model: ``obstacle``, empty if there is none, and
        ``command``, empty if there is one or the model was given in memory
    """
    rows = []
    left_out = why_not(model.parts, detectors)
    for detector in detectors:
        if detector not in left_out:
            reason = obstacle(model, detector)
            command = "" if reason else _command(run, output, detector, id, options)
            rows.append((run.name, detector, reason, command))
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)  # of paths of any bytes


def choose(
    results: pd.DataFrame,
    intervals: pd.DataFrame,
    tuning: pd.DataFrame,
    table: pd.DataFrame,
    tuned_on: str | None,
) -> tuple[str, str, str] | str:
    """The deployable row of the highest AUROC, mean over seeds and OOD sets, that is above chance:
    so is the mean of the lower ends of its 95% bootstrap intervals.

    :param results: one row per model, seed, detector and OOD set
    :param intervals: one row per model, detector and OOD set
    :param tuning: as the results, with intervals, of the OOD set that hyperparameters were chosen
        by; empty without one
    :param table: as :func:`deployable` gives it
    :param tuned_on: the name of that set
    :return: model, detector, and what they were chosen by; or why there is none
    """
    by, where = "chosen on the test sets", "the test sets"
    if len(tuning):
        by, where = f"chosen by AUROC on {tuned_on}", str(tuned_on)
        results = intervals = tuning
    fit = table[table["obstacle"] == ""]
    if fit.empty:
        return "no row of this table can be a file"
    keys = pd.MultiIndex.from_frame(fit[["loss", "detector"]])
    mean, low = _mean(results, "AUROC"), _mean(intervals, "AUROC low")
    mean = mean[mean.index.isin(keys)].dropna().sort_values(ascending=False, kind="stable")
    if mean.empty:
        return "no detector that a file can hold has a value on every OOD set"
    above = [key for key in mean.index if low.get(key, 0) > CHANCE]
    if not above:
        (model, detector), best = mean.index[0], 100 * mean.iloc[0]
        return (
            f"no detector that a file can hold is above chance on {where}: the best, {detector} on "
            f"{model}, has an AUROC of {best:.1f}%, and its 95% interval reaches down to "
            f"{100 * low.get(mean.index[0], 0):.1f}%; --export MODEL/DETECTOR takes a row all the "
            "same"
        )
    model, detector = above[0]
    return str(model), str(detector), by


def _mean(table: pd.DataFrame, column: str) -> pd.Series:
    """Of each model and detector; none where a cell has none."""
    grouped = table.groupby(["loss", "detector"], sort=False)[column]
    return grouped.agg(lambda values: values.mean(skipna=False))


def decline(reason: str, output: Path) -> Chosen:
    """No row is a file, and one that there was before is removed."""
    chosen = Chosen("", 0, "", "", reason)
    (output / FILE).unlink(missing_ok=True)
    write_json(output / ABOUT, asdict(chosen))
    return chosen


def best_seed(tested: Sequence[RunResults], name: str) -> RunResults:
    """Of a model's seeds the one with the best accuracy on its selection images; the first one
    where that was not measured."""

    def accuracy(one: RunResults) -> float:
        summary = read_json(one.run.folder / "summary.json")
        return float(summary.get("val_accuracy", 0.0))

    return max((one for one in tested if one.run.name == name), key=accuracy)  # the first of equals


def deploy(
    row: tuple[str, str, str],
    tested: RunResults,
    trial: Trial,
    divided: Split,
    sets: Sets,
    alpha: float,
    output: Path,
) -> Chosen:
    """Equip a run's model with the detector of a row, and export it.

    The detector is that of the table, fitted on what is kept of the same images; only where no
    image was held out from the model, a share of them calibrates instead.

    :param divided: the ID training images of the run
    :return: with the reason if there is no file
    """
    name, detector, by = row
    run, progress = tested.run, trial.progress
    chosen = Chosen(name, run.seed, detector, by)
    values = tested.tables.chosen.get(detector)
    about = asdict(chosen) | {
        "weights": trial.model.weights,
        "hyperparameters": values,
        "alpha": alpha,
    }
    try:
        held = _held_out(run, divided, trial.training, sets, alpha)
        about |= {"training": digest(held.training), "calibration": digest(held.calibration)}
        if _done(output, about):
            return chosen
        for note in held.notes:
            warn(progress, f"{FILE}: {note}")
        equip(
            trial.model,
            Equipment(detector, alpha, held.guarantee, hyperparameters=values),
            _batches(trial, held.training),
            _batches(trial, held.calibration),
            output / FOLDER,
            progress,
        )
        export(output / FOLDER, output / FILE)
    except InputError as error:  # what no file can be made of
        (output / FILE).unlink(missing_ok=True)
        chosen = replace(chosen, error=one_line(error))
        about["error"] = chosen.error
    write_json(output / ABOUT, about)
    return chosen


def export_calibrated(
    tested: Sequence[RunResults], output: Path, progress: Progress
) -> Path | None:
    """``model.onnx``: the first IsoMax-like model as it is, the first of any kind if there is no
    other; ``None`` if none is calibrated, or it cannot be exported, which is said."""
    path, about_path = output / "model.onnx", output / "model.json"
    ranked = sorted(
        tested, key=lambda one: (one.run.name == "softmax", one.run.given is not None, one.run.seed)
    )
    folders = ((one, one.run.calibrated_folder) for one in ranked)
    one, folder = next(((one, at) for one, at in folders if at is not None), (None, None))
    if one is None or folder is None:
        path.unlink(missing_ok=True)
        return None
    calibration = read_json(folder / "calibration.json")
    about = {
        "exported": one.run.folder.name,
        "weights": one.weights,
        "calibration": calibration,
    }
    if path.is_file() and about_path.is_file() and read_json(about_path) == about:
        return path
    try:
        export(folder, path)
    except InputError as error:  # the tables are worth more than the file
        path.unlink(missing_ok=True)
        warn(progress, f"no {path.name} of {one.run.folder.name}: {one_line(error)}")
        return None
    write_json(about_path, about)
    return path


def _done(output: Path, about: dict[str, object]) -> bool:
    path = output / ABOUT
    if not path.is_file() or not (output / FILE).is_file():
        return False
    return bool(read_json(path) == about)


def _held_out(run: Run, divided: Split, fitted: Images, sets: Sets, alpha: float) -> Split:
    """What the table's detectors were fitted on, less what calibrates."""
    if run.job is not None:
        notes = () if divided.guarantee == "established" else divided.notes
        return replace(divided, training=fitted, notes=notes)
    assert run.given is not None
    source = run.given.source if isinstance(run.given.source, str) else None
    held = split_for_calibration(sets.train, sets.held_out, splits_of(source), alpha)
    if held.calibration.source is fitted.source:
        calibrating = set(held.calibration.indices.tolist())
        kept = [at for at, index in enumerate(fitted.indices) if index not in calibrating]
        fitted = fitted.take(kept)
    return replace(held, training=fitted)


def _batches(trial: Trial, images: Images) -> ModelBatches:
    """Images with the model's outputs, which are kept already where detectors were fitted on
    them."""
    keeper, fitted = trial.keeper(images), trial.training
    outputs = trial.keeper(fitted).read()
    places = {int(index): at for at, index in enumerate(fitted.indices)}
    if (
        keeper.read() is None
        and outputs is not None
        and images.source is fitted.source
        and all(int(index) in places for index in images.indices)
    ):
        chosen = torch.tensor([places[int(index)] for index in images.indices])
        with keeper:
            for some in chosen.split(AT_ONCE):
                keeper.add(outputs.logits[some], outputs.features[some], outputs.labels[some])
    return ModelBatches(trial.loader(images), keeper, digest(images))


def options_of_calibrate(
    image_size: int | tuple[int, int] | None, fit_images: int | None
) -> list[str]:
    """What a comparison was asked for of that which ``isomax calibrate`` takes too."""
    found = []
    if image_size is not None:
        sides = (image_size,) if isinstance(image_size, int) else image_size
        found += ["--image-size", ",".join(map(str, sides))]
    if fit_images is not None:
        found += ["--fit-images", str(fit_images)]
    return found


def _command(run: Run, output: Path, detector: str, id: str, options: Sequence[str]) -> str:
    if run.given is not None and not isinstance(run.given.source, str):
        return ""
    source = str(run_folder(output, run.name, run.seed) if run.given is None else run.given.source)
    folder = f"{Path(run.name).name}-{detector}"
    calibrate = ["isomax", "calibrate", source, "--id", id, "--detector", detector, *options]
    lines = (
        [*calibrate, "--output", folder],
        ["isomax", "export", folder, f"{folder}.onnx"],
    )
    return "\n".join(map(shlex.join, lines))
