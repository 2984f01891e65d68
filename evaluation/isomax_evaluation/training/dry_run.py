"""One batch of the real size through everything that trains, before anything is begun."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError, one_line
from isomax_evaluation.training.batches import EpochBatches, mixing, train_transform
from isomax_evaluation.training.jobs import (
    Job,
    build_model,
    data_config,
    head_factor,
    make_optimizer,
    make_scheduler,
)
from isomax_evaluation.training.losses import LOSSES, criterion_of
from isomax_evaluation.training.recipes import doubts_of_recipe


@dataclass(frozen=True)
class Tried:
    """What one batch has shown."""

    doubts: list[str]  #: what will not be what was asked for, though it can be done
    images: int  #: in a step of one process
    updates: int  #: in an epoch
    seconds: float  #: that a step took, the first of all
    per_image: float  #: bytes that are kept of an image from the forward pass to the backward one
    fixed: int  #: bytes of weights, gradients and the optimiser's state


def dry_run(job: Job, training: Images, accelerator: Accelerator) -> Tried:
    """Find out whether a job can train: transform, mixing, model, loss, optimiser and schedule, on
    a picture that is made up and as many of it as a step takes.

    Nothing is kept of it, and no image is read. On the device itself, so that a batch which its
    memory cannot hold is found too.

    :param training: the images that it will be trained on
    :raises InputError: if something does not go through; names it, and the way out
    """
    recipe, loss, classes = job.recipe, LOSSES[job.loss], len(training.class_names)
    batches = EpochBatches(
        len(training),
        recipe.batch_size,
        job.seed,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.accumulate,
    )
    count = batches.step_size // accelerator.num_processes
    model = build_model(job, classes, pretrained=False).to(accelerator.device).train()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config = data_config(job, model)
    channels, height, width = config["input_size"]
    with _going_through("the transform", "see augment, auto_augment, scale and image size"):
        mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
        picture = Image.effect_noise((3 * width // 2, 3 * height // 2), 64).convert(mode)
        pixels = train_transform(recipe, config)(picture)
    inputs = pixels.expand(count, *pixels.shape).clone().to(accelerator.device)
    target = (torch.arange(count) % classes).to(accelerator.device)
    mix = mixing(recipe, classes, loss.mosaic)
    if mix is not None:
        with _going_through(
            "mixing",
            f"mixup and cutmix take an even number of images, and there are {count} in a step: "
            "choose another batch size or number of accumulated steps",
        ):
            inputs, target = mix(inputs, target)
    what = f"a step of {count} images of {channels}x{height}x{width} with {job.model}"
    with _going_through(what, "choose another image size, batch size, accumulate or model"):
        started, kept = time.perf_counter(), Kept(model)
        criterion = criterion_of(loss, recipe.class_weights, training).to(accelerator.device)
        with kept:
            with accelerator.autocast():
                logits = model(inputs)
            value = criterion(logits.float(), target)
        value.backward()
        seconds = time.perf_counter() - started
    with _going_through("an update", "choose another opt or sched"):
        optimizer = make_optimizer(model, recipe, head_factor(job))
        scheduler = make_scheduler(optimizer, recipe, batches.updates)
        optimizer.step()
        scheduler.step_update(1)
    states = [t for state in optimizer.state.values() for t in state.values()]
    fixed = [*model.state_dict().values(), *(p.grad for p in model.parameters()), *states]
    return Tried(
        doubts_of_recipe(recipe, recipe.epochs * batches.updates, job.source.starts_trained),
        count,
        batches.updates,
        seconds,
        kept.bytes / count,
        sum(t.nbytes for t in fixed if isinstance(t, Tensor)),
    )


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for the backward pass, but for the weights."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
        self._seen: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """So far; memory that several tensors share is counted once."""
        return sum(self._seen.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def _going_through(what: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # models and transforms raise whatever they please
        raise InputError(f"{what} fails: {one_line(error)}; {way_out}") from error
