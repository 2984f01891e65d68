"""The models of a comparison: trained here, or given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from isomax_adapters.pytorch_ood import Parts
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation import data
from isomax_evaluation.comparison.plan import Plan
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.data.digests import describe
from isomax_evaluation.data.splitting import Split, hold_out, split_training
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import Given
from isomax_evaluation.detection.testing import Tested
from isomax_evaluation.output.folders import claim_folder, run_folder
from isomax_evaluation.output.progress import Progress
from isomax_evaluation.output.provenance import write_provenance
from isomax_evaluation.output.tables import write_table
from isomax_evaluation.training.jobs import Job, data_config
from isomax_evaluation.training.train import claim_run, train_model

VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class Run:
    """One model and seed."""

    name: str  #: the loss it is trained with here, or the name it was given by
    seed: int
    folder: Path
    job: Job | None = None  #: how to train it
    given: Given | None = None
    opened: Model | None = None  #: the given one

    @property
    def calibrated_folder(self) -> Path | None:
        """Where it is on disk, if that is a model folder with a threshold for the ID classes."""
        if self.given is None:
            return self.folder / "model"
        if self.opened is None or self.opened.calibration is None:
            return None
        return model_folder_of(str(self.given.source))

    def parts(self) -> Parts:
        """Of the model, once it is there."""
        return self.opened.parts if self.opened else Parts(load_model(self.folder / "model"))


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


def ready_model(
    run: Run,
    sets: Sets,
    divided: Split,
    tested: Tested,
    store: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Model:
    """The model of a run: trained, if it has not been yet."""
    if run.job is None:
        assert run.opened is not None
        _claim_given(run, sets.given, divided, tested)
        return run.opened
    claim_run(run.job, sets.given, divided, run.folder)
    decoding = run.job.decoding
    folder = train_model(
        run.job,
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
        data_config(run.job, network),
        decoding,
        load_calibration(folder),
    )


def _claim_given(run: Run, name: str, divided: Split, tested: Tested) -> None:
    assert run.given is not None
    assert run.opened is not None
    settings = {
        "data": name,
        "loss": run.name,
        "seed": run.seed,
        "model": run.given.described,
        "weights": run.opened.weights,
        "images": {"train": len(divided.training), "validation": divided.held_out},
        "class_names": list(run.opened.class_names),
    }
    claim_folder(run.folder, settings)
    if not (run.folder / "provenance.json").is_file():
        sets = [("train", divided.training), ("test", tested.all_known)]
        write_provenance(run.folder, [describe(kind, images) for kind, images in sets])


def write_splits(run: Run, divided: Split, tested: Tested) -> None:
    """``splits.csv``: which images trained, were held out, and tested."""
    sets = [
        ("train", divided.training),
        ("validation", divided.selection),
        ("calibration", divided.calibration),
        ("test", tested.all_known),
        *(("ood", images) for images in tested.unknown),
        ("tuning", tested.tuning),
    ]
    write_table(run.folder / "splits.csv", data.table_of_splits(sets))
