"""What a comparison is of. In its output folder it may grow, and not change."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isomax.calibration import RejectionThreshold
from isomax_adapters.pytorch_ood import check_names
from isomax_evaluation.comparison.naming import no_doubles, split_name
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.data.digests import digest
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import Given
from isomax_evaluation.output.errors import InputError, input_errors
from isomax_evaluation.output.folders import (
    claim_folder,
    identity,
    read_settings,
    resolved,
    same_source,
)
from isomax_evaluation.training.jobs import Job, check_job, check_preprocessing
from isomax_evaluation.training.recipes import Recipe

#: adding to these goes on with a comparison; changing anything else makes another one
GROWING = ("losses", "models", "detectors", "ood", "ood_names", "seeds", "images", "digests")
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
    given: list[Given]
    detectors: list[str]
    ood: list[tuple[str | None, Any]]  #: name, if it was given one, and folder, name or data set

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What given models' preprocessing is to be other than their own, by timm's names."""
        mine = self.job.preprocessing.of_a_model
        return {name: value for name, value in mine.items() if name != "in_chans"}

    def check(self, ood_is_given: bool) -> None:
        """Refuse what cannot work, before any work.

        :raises InputError: naming the value and what it may be
        """
        sets = [name if name is not None else str(source) for name, source in self.ood]
        models = [*self.losses, *dict.fromkeys(given.name for given in self.given)]
        for what, names in (("models", models), ("detectors", self.detectors), ("OOD sets", sets)):
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


def grown(plan: Plan, output: Path) -> Plan:
    """The plan with what the output folder has already, which comes first.

    :raises InputError: if something there was given in memory, and is not given again
    """
    found = read_settings(output)
    if found is None or "losses" not in found:
        return plan
    losses = _union(found["losses"], plan.losses)
    job, seeds = plan.job, plan.seeds
    if found["losses"]:
        job = plan.job if plan.losses else _job_of(found, plan.job)
        seeds = max(found["seeds"], plan.seeds if plan.losses else 0)
    mine = {(given.name, given.seed): given for given in plan.given}
    there = [_given_of(model, mine) for model in found.get("models", [])]
    given = _union(there, plan.given)
    return replace(
        plan,
        job=replace(
            job,
            loss=losses[0] if losses else "",
            source=_kept(job.source, found),
            preprocessing=_kept(job.preprocessing, found),
        ),
        losses=losses,
        seeds=seeds,
        given=given,
        detectors=_union(found["detectors"], plan.detectors),
        ood=_grown_ood(found, plan.ood),
    )


def claim(
    output: Path,
    plan: Plan,
    sets: Sets,
    models: Sequence[Model],
    tune: str | None,
    fit_images: int | None,
) -> None:
    """Make the output folder that of this comparison, or go on with the one that it holds.

    :raises InputError: if it holds another comparison, or one of other images or weights
    """
    every = [("train", sets.train), ("test", sets.test), *((s.name, s) for s in sets.unknown)]
    training = plan.job.settings
    settings = {
        "id": sets.given,
        "ood": [source for _, source in sets.given_ood],
        "losses": plan.losses,
        "detectors": plan.detectors,
        "images": {images.name: len(images) for images in (sets.train, *sets.unknown)}
        | {"id test": len(sets.test), "id scored": len(sets.known)},
        "class_names": list(sets.train.class_names),
        "image_size": plan.job.preprocessing.image_size,
        **{key: training[key] for key in _OPTIONAL if training[key] is not None},
        **({"tune": resolved(tune)} if tune else {}),
        **({"fit_images": fit_images} if fit_images else {}),
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
    found = read_settings(output)
    if found is not None and _begun(output):
        settings = _continued(output, found, json.loads(json.dumps(settings)))
    claim_folder(output, settings, GROWING, _begun)


def _begun(output: Path) -> bool:
    """Whether anything was trained or scored there."""
    files = ("checkpoint.pt", "model/*", "scores/*")
    places = (*(f"runs/*/{file}" for file in files), *files)  # of a training, straight in there
    return any(next(output.glob(place), None) for place in places)


def _continued(output: Path, found: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of all that the folder then holds."""
    for key in ("id", "tune"):
        if key in given and same_source(found.get(key), given[key]):
            given[key] = found[key]
    known, now = found.get("digests", {}), given["digests"]
    if all(known.get(part) == now[part] for part in ("train", "test")) and (
        Path(str(found.get("id"))).name == Path(given["id"]).name
    ):
        given["id"] = found["id"]  # moved, or seen from elsewhere
    changed = _changed(found, given) if found.get("id") == given["id"] else []
    for name, before, now in changed:
        raise InputError(
            f"{name} changed since {output} was made (digest {before} then, {now} now); choose "
            "another output folder, or give what changed another name: NAME=SOURCE"
        )
    for key in _TRAINING if not found.get("losses") else ():
        if key in given and key not in found:
            found = {**found, key: given[key]}
    for key in ("images", "digests"):
        given[key] = given[key] | {
            k: v for k, v in found.get(key, {}).items() if k not in given[key]
        }
    return given


def _changed(found: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Sets and models that were there under the same name with other content."""
    before, now = found.get("digests", {}), given["digests"]
    words = {"train": "the ID training images", "test": "the ID test images"}
    changes = [
        (f"{words.get(name, f'the images of {name}')} have", before[name], now[name])
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    weights = {
        (model["name"], model["seed"]): model["weights"] for model in found.get("models", [])
    }
    for model in given["models"]:
        there = weights.get((model["name"], model["seed"]), model["weights"])
        if there != model["weights"]:
            changes.append((f"the weights of {model['name']} have", there, model["weights"]))
    return changes


def _union(found: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    return [*found, *(item for item in given if item not in found)]


def _given_of(model: Mapping[str, Any], mine: Mapping[tuple[str, int], Given]) -> Given:
    key = model["name"], model["seed"]
    if key in mine:
        return mine[key]
    if model.get("in_memory"):
        raise InputError(
            f"the output folder also has the model {model['name']}, which was given in memory; "
            "give it again, or choose another folder"
        )
    return Given(*key, model["source"])


def _grown_ood(
    found: Mapping[str, Any], given: Sequence[tuple[str | None, Any]]
) -> list[tuple[str | None, Any]]:
    there = [split_name(text) for text in found["ood"]]
    names = found["ood_names"]
    mine = {name: source for name, source in given if name is not None}
    kept = [(name, mine.get(name, source)) for name, (_, source) in zip(names, there, strict=True)]
    seen = {identity(source) for _, source in there}
    new = [
        (name, source)
        for name, source in given
        if name not in names and not (isinstance(source, str) and identity(source) in seen)
    ]
    return [*kept, *new]


def _job_of(found: Mapping[str, Any], like: Job) -> Job:
    """How the models that are there were trained."""
    lists = ("decay_milestones", "scale", "mean", "std")
    recipe: Any = {k: tuple(v) if k in lists else v for k, v in found["recipe"].items()}
    kept = {key: found[key] for key in ("model", "pretrained", "small_images")}
    source = replace(like.source, **kept)
    return replace(like, recipe=Recipe(**recipe), source=source, alpha=found["alpha"])


def _kept(settings: Any, found: Mapping[str, Any]) -> Any:
    """With what the folder has of that which is not given again."""
    there = _tuples(found)
    mine = asdict(settings)
    return replace(
        settings,
        **{key: there[key] for key, value in mine.items() if value is None and there.get(key)},
    )


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that JSON has made lists of."""
    pairs = ("image_size", "grey_range")
    return {
        key: tuple(value) if key in pairs and isinstance(value, list) else value
        for key, value in settings.items()
    }
