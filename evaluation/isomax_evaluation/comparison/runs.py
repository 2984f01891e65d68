"""The models of a comparison, trained here or given, and what comes out of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator

from isomax_adapters.pytorch_ood import Parts, why_not
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation import data
from isomax_evaluation.comparison.plan import Plan, holds_training, settings_of
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.data.digests import describe
from isomax_evaluation.data.images import limit_per_class
from isomax_evaluation.data.splitting import Split, hold_out, split_training
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import GivenModel
from isomax_evaluation.detection.testing.results import (
    ModelResults,
    tell_doubts,
    test_model,
    write_tables,
)
from isomax_evaluation.detection.testing.trial import TestSets, Trial
from isomax_evaluation.output.cache import Cache
from isomax_evaluation.output.folders import check_folder, claim_folder, run_folder
from isomax_evaluation.output.progress import Progress, tell
from isomax_evaluation.output.provenance import write_provenance
from isomax_evaluation.output.tables import write_table
from isomax_evaluation.training.card import write_card
from isomax_evaluation.training.jobs import Job, data_config
from isomax_evaluation.training.train import check_run, claim_run, train_model

VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class Run:
    """One model and seed."""

    name: str  #: the loss it is trained with here, or the name it was given by
    seed: int
    folder: Path
    job: Job | None = None  #: how to train it
    given: GivenModel | None = None
    opened: Model | None = None  #: the given one

    @property
    def calibrated_folder(self) -> Path | None:
        """Where it is on disk, if that is a model folder with a threshold for the ID classes."""
        if self.given is None:
            return self.folder / "model"
        if self.opened is None or self.opened.calibration is None:
            return None
        return model_folder_of(str(self.given.source))


@dataclass(frozen=True)
class RunResults:
    """What came out of a run."""

    run: Run
    weights: str  #: digest
    tables: ModelResults
    left_out: dict[str, str]  #: the detectors that cannot work on the model, with the reason
    deployable: pd.DataFrame  #: as :func:`~isomax_evaluation.comparison.deploying.deployable` says


def runs_of(output: Path, plan: Plan, opened: Sequence[Model]) -> list[Run]:
    """All models of a comparison, seed by seed."""
    trained = [
        Run(loss, seed, run_folder(output, loss, seed), replace(plan.job, loss=loss, seed=seed))
        for seed in range(plan.seeds)
        for loss in plan.losses
    ]
    existing = [
        Run(one.name, one.seed, run_folder(output, one.name, one.seed), given=one, opened=model)
        for one, model in zip(plan.given, opened, strict=False)
    ]
    return trained + sorted(existing, key=lambda run: run.seed)


def divide(run: Run, sets: Sets, alpha: float, tuned: bool) -> Split:
    """The ID training images of a run: those that its detectors are fitted on, and those held out
    for what must not see them. Of given models nothing is held out but for a tuning."""
    if run.job is None and not tuned:
        return Split(sets.train, None, sets.train.take([]), "unknown")
    if run.job is None and sets.held_out is None:
        rest, held = hold_out(sets.train, VALIDATION_SHARE, run.seed)
        return Split(rest, held, sets.train.take([]), "unknown")
    return split_training(sets.train, sets.held_out, alpha, seed=run.seed, usual=VALIDATION_SHARE)


def claim(output: Path, plan: Plan, sets: Sets, runs: Sequence[Run], progress: Progress) -> None:
    """Make the output folder that of this comparison; what another one has kept there stays.

    :raises InputError: if it holds something else, or the folder of a run holds a training with
        other settings or images, which is not undone
    """
    given = {(run.name, run.seed): run.opened for run in runs if run.opened is not None}
    settings = settings_of(plan, sets, [given[one.name, one.seed] for one in plan.given])
    check_folder(output, settings, holds_training)
    notes: dict[str, None] = {}
    for run in runs:
        divided = divide(run, sets, plan.job.alpha, plan.tune is not None)
        if run.job is None:
            check_folder(run.folder, _settings_of_given(run, sets, divided), holds_training)
        else:
            check_run(run.job, sets.given, divided, run.folder)
            notes |= dict.fromkeys(divided.notes)
    for note in notes:
        tell(progress, note)
    claim_folder(output, settings, holds_training)
    images = [("train", sets.train), ("test", sets.test)]
    images += [("ood", unknown) for unknown in sets.unknown]
    write_provenance(output, [describe(kind, part) for kind, part in images])


def trial_of(
    run: Run, plan: Plan, sets: Sets, output: Path, accelerator: Accelerator, progress: Progress
) -> tuple[Trial, Split]:
    """The model of a run, trained if it has not been yet, and the images it is tried on."""
    divided = divide(run, sets, plan.job.alpha, plan.tune is not None)
    model, store = run.opened, output / "outputs"
    if run.job is None:
        claim_folder(run.folder, _settings_of_given(run, sets, divided), holds_training)
        origins = [("train", divided.training), ("test", sets.test)]
        write_provenance(run.folder, [describe(kind, images) for kind, images in origins])
    else:
        claim_run(run.job, sets.given, divided, run.folder)
        model = _trained(run, run.job, sets, divided, store, accelerator, progress)
    assert model is not None
    training = limit_per_class(divided.training, plan.fit_images)
    trial = Trial(
        model,
        run.folder,
        store,
        Cache(output / "cache"),
        training,
        divided.selection,
        sets.tests,
        plan.job.workers,
        progress,
        measure_costs=plan.measure_costs and run.seed == 0,
    )
    write_table(run.folder / "splits.csv", _splits(replace(divided, training=training), sets.tests))
    return trial, divided


def results_of(run: Run, trial: Trial, plan: Plan, deployable: pd.DataFrame) -> RunResults:
    """What all detectors make of the images; its tables are in the folder of the run."""
    tables = test_model(trial, plan.detectors)
    write_tables(trial, tables)
    if run.job is None:
        tell_doubts(trial)
    else:
        write_card(run.folder)
    model = trial.model
    return RunResults(run, model.weights, tables, why_not(model.parts, plan.detectors), deployable)


def _settings_of_given(run: Run, sets: Sets, divided: Split) -> dict[str, Any]:
    assert run.given is not None
    assert run.opened is not None
    return {
        "data": sets.given,
        "loss": run.name,
        "seed": run.seed,
        "model": run.given.described,
        "weights": run.opened.weights,
        "images": {"train": len(divided.training), "validation": divided.held_out},
        "class_names": list(run.opened.class_names),
    }


def _trained(
    run: Run,
    job: Job,
    sets: Sets,
    divided: Split,
    store: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Model:
    decoding = job.decoding
    folder = train_model(
        job,
        divided.decoded(decoding),
        sets.test.decoded(decoding),
        run.folder,
        accelerator,
        progress,
        store,
    )
    network: Any = load_model(folder).to(accelerator.device)
    return Model(
        run.name,
        run.seed,
        Parts(network),
        sets.train.class_names,
        data_config(job, network),
        decoding,
        load_calibration(folder),
    )


def _splits(divided: Split, tests: TestSets) -> pd.DataFrame:
    """Which images trained, were held out, and tested."""
    sets = [
        ("train", divided.training),
        ("validation", divided.selection),
        ("calibration", divided.calibration),
        ("test", tests.all_known),
        *(("ood", images) for images in tests.unknown),
        ("tuning", tests.tuning),
    ]
    return data.table_of_splits(sets)
