"""What is asked of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isomax.calibration import RejectionThreshold
from isomax_adapters.pytorch_ood import check_names
from isomax_evaluation.comparison.given import no_doubles
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.data.digests import digest
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import GivenModel
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.folders import read_settings, resolved
from isomax_evaluation.training.jobs import Job, check_job, check_preprocessing

_TRAINING = ("model", "recipe", "pretrained", "small_images", "alpha")  # settings of a job
_OPTIONAL = (
    *("weights", "in_chans", "grey_range", "crop_mode", "crop_pct", "interpolation"),
    "orientation",
)


@dataclass(frozen=True)
class Plan:
    """The models, detectors and OOD sets of a comparison."""

    job: Job  #: how to train; of the losses, each in turn
    losses: list[str]
    seeds: int
    given: list[GivenModel]
    detectors: list[str]
    ood: list[tuple[str | None, Any]]  #: name, if it was given one, and folder, name or data set
    tune: str | None = None  #: the OOD set that chooses hyperparameters
    fit_images: int | None = None  #: detectors are fitted on at most so many of each class
    measure_costs: bool = True

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What given models' preprocessing is to be other than their own, by timm's names."""
        mine = self.job.preprocessing.of_a_model
        return {name: value for name, value in mine.items() if name != "in_chans"}

    @property
    def models(self) -> list[str]:
        """The names of all of them."""
        return [*self.losses, *dict.fromkeys(given.name for given in self.given)]

    def check(self, ood_is_given: bool) -> None:
        """Refuse what cannot work, before any work.

        :raises InputError: naming the value and what it may be
        """
        sets = [name if name is not None else str(source) for name, source in self.ood]
        for what, names in (
            ("models", self.models),
            ("detectors", self.detectors),
            ("OOD sets", sets),
        ):
            if not names and (what != "OOD sets" or ood_is_given):
                raise InputError(f"no {what} given; name at least one")
            no_doubles(what, names)
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}; expected at least 1")
        check_preprocessing(self.job)
        for loss in self.losses:
            check_job(replace(self.job, loss=loss))
        check_names(self.detectors)
        with input_errors():
            RejectionThreshold(self.job.alpha)


def settings_of(plan: Plan, sets: Sets, models: Sequence[Model]) -> dict[str, Any]:
    """What a comparison is of, for ``settings.json``.

    :param models: those that were given
    """
    every = [("train", sets.train), ("test", sets.test), *((s.name, s) for s in sets.unknown)]
    training = plan.job.settings
    return {
        "id": sets.given,
        "ood": [source for _, source in sets.given_ood],
        "losses": plan.losses,
        "detectors": plan.detectors,
        "images": {images.name: len(images) for images in (sets.train, *sets.unknown)}
        | {"id test": len(sets.test), "id scored": len(sets.known)},
        "class_names": list(sets.train.class_names),
        "image_size": plan.job.preprocessing.image_size,
        **{key: training[key] for key in _OPTIONAL if training[key] is not None},
        **({"tune": resolved(plan.tune)} if plan.tune else {}),
        **({"fit_images": plan.fit_images} if plan.fit_images else {}),
        **({"seeds": plan.seeds} if plan.losses else {}),
        **({key: training[key] for key in _TRAINING} if plan.losses else {}),
        "ood_names": [name for name, _ in sets.given_ood],
        "digests": {name: digest(images) for name, images in every},
        "models": [
            {
                "name": model.name,
                "seed": model.seed,
                "source": given.described if given.in_memory else resolved(given.described),
                "in_memory": given.in_memory,
                "weights": model.weights,
            }
            for given, model in zip(plan.given, models, strict=True)
        ],
    }


def holds_training(folder: Path) -> bool:
    """Whether a model was trained into a folder, or began to be."""
    settings = read_settings(folder) or {}
    begun = any(next(folder.glob(file), None) for file in ("checkpoint.pt", "model/*"))
    return begun and {"loss", "recipe"} <= settings.keys()
