"""The images of a comparison: opened, named, limited, read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_ood.benchmark import Benchmark

from isomax_adapters.runtime.decoding import Decoding
from isomax_evaluation import data
from isomax_evaluation.comparison.given import no_doubles, unique_names
from isomax_evaluation.data.benchmarks import open_benchmark
from isomax_evaluation.data.datasets import Splits
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.data.torch_datasets import open_torch
from isomax_evaluation.detection.testing.trial import TestSets
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.folders import identity, resolved
from isomax_evaluation.output.progress import Progress, tell, warn


@dataclass(frozen=True)
class Sets:
    """The images that models of a comparison are fitted and tested on."""

    given: str  #: what the ID data was given as
    given_ood: list[tuple[str, str]]  #: name of each OOD set, and what it was given as
    train: Images
    test: Images  #: the whole ID test set
    known: Images  #: those of it that are scored
    unknown: list[Images]
    tuning: Images | None
    held_out: Images | None = None  #: the user's own validation set
    drawn: bool = False  #: whether the test images were drawn from the training images
    found: tuple[str, ...] = ()  #: what was read of the ID data, a line for each split

    @property
    def tests(self) -> TestSets:
        """Those that models are tested on."""
        return TestSets(self.known, self.unknown, self.test, self.tuning)

    @property
    def tensors(self) -> bool:
        """Whether the images are finished tensors, rather than images that a model prepares."""
        first = None if self.train.paths else self.train.source[int(self.train.indices[0])][0]
        return isinstance(first, torch.Tensor)


def open_sets(
    id: Any,
    ood: Sequence[tuple[str | None, Any]],
    benchmark: Benchmark | str | None,
    tune: str | None,
    reading: Reading,
) -> Sets:
    """The images as they were given.

    :param ood: name, if it was given one, and folder, name or data set
    :raises InputError: if some cannot be opened, or are given twice
    """
    root = reading.data_root
    if benchmark is not None:
        train, test, unknown = open_benchmark(benchmark, root)
        splits = Splits(train, test)
        given, given_ood = train.name, [(images.name, images.name) for images in unknown]
    else:
        splits = _open_id(id, reading)
        train, test = splits.train, splits.test
        given = resolved(str(id)) if isinstance(id, (str, Path)) else train.name
        names = [name for name, _ in ood]
        texts = [source for name, source in ood if name is None]
        own = dict(zip(texts, unique_names(texts, [train.name, *filter(None, names)]), strict=True))
        named = [(own[source] if name is None else name, source) for name, source in ood]
        unknown = [replace(_open(source, name, root), name=name) for name, source in named]
        given_ood = [(n, resolved(str(s)) if isinstance(s, (str, Path)) else n) for n, s in named]
    no_doubles("test sets", [test.name, *(images.name for images in unknown)])
    tuning = None
    if tune is not None:
        tested = [train.name, given, *(source for _, source in given_ood)]
        if identity(tune) in map(identity, tested):
            raise InputError(
                f"{tune} is tested on; choose another dataset to tune on, or the table flatters"
            )
        tuning = data.open_images(tune, "train", root)
    return Sets(
        given, given_ood, train, test, test, unknown, tuning, splits.held_out, splits.drawn,
        splits.found,
    )  # fmt: skip


def prepared(
    sets: Sets,
    images_per_class: int | None,
    test_images: int | None,
    reading: Reading,
    table: Path,
    decodings: Sequence[Decoding],
    progress: Progress,
) -> Sets:
    """Limited, and read once in each way that some model reads them; decoded in the first.

    :param table: of images that are there more than once
    :raises InputError: if some do not decode and are not skipped, a limit leaves none, or sets
        share images
    """
    for line in sets.found:
        tell(progress, f"{sets.train.name}, {line}")
    for images in (*sets.unknown, *([] if sets.tuning is None else [sets.tuning])):
        if images.found:
            tell(progress, f"{images.name}: {images.found}")
    for images in sets.unknown:
        if shared := sorted(set(images.class_names) & set(sets.train.class_names)):
            warn(
                progress,
                f"{len(shared)} classes of the OOD set {images.name} also occur in "
                f"{sets.train.name}: {', '.join(shared[:10])}",
            )
    train = data.limit_per_class(sets.train, images_per_class)
    unknown = [data.at_most(images, test_images) for images in sets.unknown]

    def read(*several: Images) -> list[Images]:
        found = list(several)
        for decoding in reversed(decodings):
            decoded = [images.decoded(decoding) for images in found]
            found = data.readable(decoded, reading.skip_bad_images, reading.workers, progress)
        return found

    known = [sets.test, *([] if sets.held_out is None else [sets.held_out]), train]
    tuning = [] if sets.tuning is None else [data.at_most(sets.tuning, test_images or 1000)]
    read_all = read(*known, *unknown, *tuning)
    names = ("test", "validation", "training") if len(known) > 2 else ("test", "training")
    settled = data.settle(
        dict(zip(names, read_all, strict=False)),
        reading,
        table,
        read_all[len(known) :],
        drawn="test" if sets.drawn else "",
    )
    for note in settled.notes:
        tell(progress, note)
    train, test = settled.parts["training"], settled.parts["test"]
    unknown, tuning = settled.ood[: len(unknown)], settled.ood[len(unknown) :]
    missing = data.check_counts(train, test)
    for doubt in (*missing, *data.warnings_of(train)):
        warn(progress, doubt)
    for images in unknown:
        if not len(images):
            raise InputError(f"{images.name} has no image that can be read")
    return replace(
        sets,
        train=train,
        test=test,
        known=data.at_most(test, test_images),
        unknown=[images.as_ood() for images in unknown],
        tuning=tuning[0].as_ood() if tuning else None,
        held_out=settled.parts.get("validation"),
    )


def _open_id(id: Any, reading: Reading) -> Splits:
    if isinstance(id, (str, Path)):
        return data.open_splits(str(id), reading)
    if isinstance(id, Mapping):
        if len(id) != 1:
            raise InputError(f"id has {len(id)} names; expected one, with a training and test set")
        ((name, pair),) = id.items()
    else:
        name, pair = "id", id
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
            f"id is {type(pair).__name__}; expected a folder, the name of a dataset, or a pair of "
            "training and test set"
        )
    train, test = (open_torch(given, str(name)) for given in pair)
    if unknown := int((train.labels < 0).sum() + (test.labels < 0).sum()):
        raise InputError(
            f"{name} has {unknown} images with labels below 0, which are out-of-distribution; give "
            "those as ood"
        )
    if len(train.class_names) < 2:
        raise InputError(f"{name} has one class; a classifier needs at least two")
    if _numbered(train) or _numbered(test):  # then it is known by its largest label only
        names = max(train.class_names, test.class_names, key=len)
        return Splits(replace(train, class_names=names), replace(test, class_names=names))
    return Splits(train, data.of_classes(test, train.class_names))


def _numbered(images: Images) -> bool:
    return images.class_names == tuple(map(str, range(len(images.class_names))))


def _open(source: Any, name: str, root: str | None) -> Images:
    if isinstance(source, (str, Path)):
        return data.open_images(str(source), "test", root)
    return open_torch(source, name, labelled=False)
