"""A model and the images that detectors on it are tried on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.loading import loader_of
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.scoring import score
from isomax_evaluation.extraction.sharing import adopt
from isomax_evaluation.extraction.store import Outputs, OutputsOnDisk, keeper
from isomax_evaluation.output.cache import Cache
from isomax_evaluation.output.progress import Progress, shown


@dataclass(frozen=True)
class TestSets:
    """The images that every model of a comparison is tested on."""

    known: Images  #: of the ID set, those that are scored
    unknown: Sequence[Images]
    all_known: Images  #: the whole ID test set, which accuracy is measured on
    tuning: Images | None = None  #: OOD images for hyperparameters; none are tuned without


@dataclass(frozen=True)
class Trial:
    """One model, the images it is tried on, and where what comes out is kept."""

    model: Model
    folder: Path  #: of the run, for its tables
    store: Path  #: of the models' outputs
    cache: Cache  #: of scores, hyperparameters and costs
    training: Images  #: ID images that detectors are fitted on
    validation: Images | None  #: ID images that hyperparameters are chosen by
    sets: TestSets
    workers: int
    progress: Progress
    measure_costs: bool

    @property
    def choosing(self) -> tuple[Images, Images] | None:
        """ID and OOD images that choose hyperparameters, and which detector is the best; none if
        nothing is tuned."""
        if self.validation is None or self.sets.tuning is None:
            return None
        return self.validation, self.sets.tuning

    @property
    def scored(self) -> list[Images]:
        """All sets that detectors score."""
        return [self.sets.known, *self.sets.unknown, *(self.choosing or ())]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What all that is computed of the model depends on."""
        digests = self.model.digests
        return {
            "weights": [digests.whole, digests.backbone],  # which layer is the head tells the last
            "preprocessing": repr(self._preprocessing),
            "std": list(self.model.parts.std),
            "seed": self.model.seed,
        }

    @cached_property
    def training_digest(self) -> str:
        """Of the images that detectors are fitted on."""
        return digest(self.training)

    @property
    def _preprocessing(self) -> dict[str, Any] | None:
        found = self.model.preprocessing
        return None if found is None else {**found, **self.model.decoding.options}

    def keeper(self, images: Images) -> OutputsOnDisk:
        """Where the model's outputs on some images are kept."""
        model = self.model
        kept = keeper(self.store, model.digests, self._preprocessing, digest(images), len(images))
        adopt(kept, model.parts)
        return kept

    def loader(self, *sets: Images) -> Any:
        """Their batches, as the model takes them."""
        decoded = [images.decoded(self.model.decoding) for images in sets]
        return loader_of(self.model.transform, self.workers, *decoded)

    def outputs(self, images: Images) -> Outputs:
        """The model's outputs on some images; computed if they are not kept."""
        keeper = self.keeper(images)
        kept = keeper.read()
        if kept is not None:
            return kept
        doing = f"running {self.model.name} on {images.name}"
        with shown(self.progress, doing, len(images)) as advance:
            return score(self.model.parts, {}, self.loader(images), advance, keeper)[0]
