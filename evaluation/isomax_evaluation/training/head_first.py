"""A head on a pretrained backbone: begun where its features say, and trained alone on them.

The backbone runs once over the images; its features are kept, and the head trains on these in
seconds.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isomax.fitting import classified_right, fit_head
from isomax.starting import start_at_means, start_head
from isomax_adapters.pytorch_ood import Digests, Parts, digests_of_weights
from isomax_evaluation.data.digests import digest
from isomax_evaluation.data.images import Images, Transformed
from isomax_evaluation.data.loading import workers_for
from isomax_evaluation.data.splitting import Split
from isomax_evaluation.extraction.one_pass import one_pass
from isomax_evaluation.extraction.sharing import adopt
from isomax_evaluation.extraction.store import (
    Outputs,
    keeper,
    together,
)
from isomax_evaluation.output.errors import input_errors
from isomax_evaluation.output.progress import Progress, say, shown
from isomax_evaluation.training.batches import Augmented, train_transform
from isomax_evaluation.training.best import HEAD, MEANS, Offer
from isomax_evaluation.training.jobs import Job
from isomax_evaluation.training.losses import ALONE, LOSSES
from isomax_evaluation.training.recipes import Recipe

COPIES = 2**20  # the first of the epochs that augmented copies are drawn as


@dataclass(frozen=True)
class _Features:
    training: Outputs  #: of the training images, and of copies of them that are augmented
    selection: Outputs | None


def epochs_of_head(head_first: int | None, epochs: int, loss: str) -> int:
    """How long the head is trained alone: what the recipe says, else what its loss does best with;
    if nothing else is trained, :data:`ALONE` epochs.

    :param head_first: of the recipe
    :param epochs: of the whole network
    """
    if head_first is not None:
        return head_first
    return ALONE if epochs == 0 else LOSSES[loss].head_first


def epochs_to_offer(recipe: Recipe, loss: str, selects: bool) -> int:
    """How long the head is trained alone in any case: where the whole network does not begin with
    it, as what can be kept instead.

    :param selects: whether there are selection images
    """
    before = epochs_of_head(recipe.head_first, recipe.epochs, loss)
    if before or recipe.head_first is not None or recipe.keep != "best" or not selects:
        return before
    return ALONE


def head_first(
    job: Job,
    model: nn.Module,
    divided: Split,
    config: Mapping[str, Any],
    store: Path,
    offer: Offer,
    accelerator: Accelerator,
    progress: Progress,
) -> list[dict[str, float]]:
    """Begin the head of a model with a pretrained backbone, and train it alone.

    Heads that compare directions begin at the class means of the features, others and a linear
    layer at zero; with ``head_start="paper"`` they stay where they are. Images are taken
    as in evaluation, with their own labels: what a recipe says of mixup, mosaics and smoothing is
    for the whole network. A model with several classifiers is left as it is.

    :param store: folder of the kept features
    :param offer: takes what has come of it, with which selection images are right
    :return: of each epoch a row for the run's metrics
    :raises InputError: if the features cannot be used
    """
    parts = Parts(model)
    if len(parts.classifiers) > 1:
        say(progress, f"{job.model} has several classifiers; their heads are not trained alone")
        return []
    head = parts.classifier
    if isinstance(head, nn.Conv2d):
        head = parts.linear_layer()
    features = _features(job, parts, divided, config, store, accelerator, progress)
    validation = None
    if features.selection is not None:
        validation = features.selection.features, features.selection.labels
    training = features.training.features, features.training.labels

    def judge(stage: int, what: str) -> None:
        _put_back(parts, head)
        if validation is not None:
            offer(model, classified_right(head, *validation), stage, what)

    epochs = epochs_of_head(job.recipe.head_first, job.recipe.epochs, job.loss)
    alone = epochs_to_offer(job.recipe, job.loss, validation is not None)
    started = time.perf_counter()
    with input_errors():  # of features that are NaN
        started_at_means = _start(job, head, *training)
    if started_at_means:
        judge(MEANS, "class means, nothing trained")
    begun = copy.deepcopy(head.state_dict())
    if alone:
        what = f"the head alone, {alone} epochs"
        with shown(progress, f"{job.loss}, seed {job.seed}: {what}"), input_errors():
            history = fit_head(head, *training, epochs=alone, validation=validation, seed=job.seed)
        judge(HEAD, what)
    if not epochs:
        head.load_state_dict(begun)
        _put_back(parts, head)
        return []
    last = history[-1]
    told = f"training loss {last['train_loss']:.4f}"
    if "val_accuracy" in last:
        told += f", validation accuracy {last['val_accuracy']:.1%}"
    say(progress, f"{job.loss}, seed {job.seed}: the head alone, {told}")
    now, seconds = time.time(), (time.perf_counter() - started) / epochs
    return [
        {
            "epoch": row.pop("epoch"),
            "time": now,
            "head_seconds": seconds,
            **{f"head_{name}": v for name, v in row.items()},
        }
        for row in history
    ]


def _start(job: Job, head: Any, features: Tensor, labels: Tensor) -> bool:
    """Begin a head where the recipe says; whether that is at the class means."""
    if job.recipe.head_start == "paper":
        return False
    if job.recipe.head_start == "means":
        start_at_means(head, features, labels)
        return True
    return start_head(head, features, labels)


def _put_back(parts: Parts, head: nn.Module) -> None:
    """The weights of a linear layer into the 1x1 convolution that it stands for."""
    layer = parts.classifier
    if layer is not head:
        state = head.state_dict()
        with torch.no_grad():
            layer.weight.copy_(state["weight"][:, :, None, None])
            if layer.bias is not None:
                layer.bias.copy_(state["bias"])


def _features(
    job: Job,
    parts: Parts,
    divided: Split,
    config: Mapping[str, Any],
    store: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> _Features:
    """Of the training images, as they are and augmented, and of the selection images."""
    model: Any = parts.model
    model.to(accelerator.device).eval()
    weights = digests_of_weights(model, parts.classifiers)
    train, plain = divided.training, timm.data.create_transform(**config)
    about = dict(config) | job.decoding.options
    passes: list[tuple[Images, Any, Any]] = [(train, Transformed(train, plain), about)]
    for number in range(1, job.recipe.augment_copies + 1):
        drawn = Augmented(train, train_transform(job.recipe, config), job.seed, COPIES + number)
        passes.append((train, drawn, {**about, "augmented": _augmentation(job, number)}))
    if divided.selection is not None:
        passes.append((divided.selection, Transformed(divided.selection, plain), about))
    found = [
        _outputs(parts, weights, *given, job, store, accelerator, progress) for given in passes
    ]
    selection = found.pop() if divided.selection is not None else None
    return _Features(found[0] if len(found) == 1 else together(*found), selection)


def _outputs(
    parts: Parts,
    weights: Digests,
    images: Images,
    dataset: Dataset,
    about: Any,
    job: Job,
    store: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Outputs:
    kept = keeper(store, weights, about, digest(images), len(images))
    if accelerator.is_main_process:
        adopt(kept, parts)
    if accelerator.is_main_process and kept.read() is None:
        workers = workers_for(images, job.workers)
        loader: DataLoader = DataLoader(dataset, batch_size=64, num_workers=workers)
        with shown(progress, f"features of {len(images)} images", len(images)) as advance:
            for _ in one_pass(parts, loader, kept, advance=advance):
                pass
    accelerator.wait_for_everyone()
    found = kept.read()
    assert found is not None
    return found


def _augmentation(job: Job, copy: int) -> list[Any]:
    """All that decides which augmented images a copy has."""
    recipe = job.recipe
    return [
        *(job.seed, copy, recipe.augment, recipe.hflip, list(recipe.scale)),
        *(recipe.color_jitter, recipe.auto_augment, recipe.reprob),
    ]
