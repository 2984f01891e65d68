"""The batches of a training: their order, their augmentation, what is mixed in them."""

import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import timm.data
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler
from torchvision import transforms

from isomax.functional import mosaic
from isomax_evaluation.data.decoded import AugmentedBatches, Decoded
from isomax_evaluation.data.images import Images, Transformed
from isomax_evaluation.data.loading import workers_for
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.jobs import Job
from isomax_evaluation.training.recipes import Recipe

Batches = DataLoader | Decoded | AugmentedBatches


def train_loader(
    job: Job,
    images: Images,
    config: dict[str, Any],
    batches: "EpochBatches",
    accelerator: Accelerator,
) -> Batches:
    """This process's share of the batches, augmented."""
    recipe, workers = job.recipe, workers_for(images, job.workers)
    if recipe.in_memory:
        decoded = Decoded(images, config, accelerator.device, recipe.batch_size, workers)
        padding = min(config["input_size"][1:]) // 8 if recipe.augment == "pad-crop" else 0
        hflip = recipe.hflip if recipe.augment == "pad-crop" else 0.0
        return AugmentedBatches(decoded, batches, padding, hflip)
    return DataLoader(
        Augmented(images, train_transform(recipe, config), job.seed),
        batch_sampler=_Dated(batches),
        num_workers=workers,
        # under spawn each starts as a new interpreter does, which takes seconds
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # of no use here, but then it draws from the process's
    )


def eval_loader(
    images: Images, config: dict[str, Any], job: Job, accelerator: Accelerator
) -> Batches:
    """This process's share of the images, in order; may be iterated again and again."""
    share = images.take(
        np.arange(accelerator.process_index, len(images), accelerator.num_processes)
    )
    batch_size, workers = max(64, job.recipe.batch_size), workers_for(images, job.workers)
    if job.recipe.in_memory:
        return Decoded(share, config, accelerator.device, batch_size, workers)
    transform = timm.data.create_transform(**config)
    return DataLoader(
        Transformed(share, transform),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class Augmented(Transformed):
    """Images under a random transform, whose draws only the seed, the epoch and the image decide:
    not the process that makes them, nor what else draws."""

    def __init__(self, images: Images, transform: Any, seed: int, epoch: int = 0) -> None:
        """:param epoch: of positions that come without one"""
        super().__init__(images, transform)
        self.seed, self.epoch = seed, epoch

    def __getitem__(self, at: int | tuple[int, int]) -> tuple[Tensor, int]:
        """:param at: a position, or epoch and position"""
        epoch, position = at if isinstance(at, tuple) else (self.epoch, at)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed = hash_seed(self.seed, epoch, position)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            return super().__getitem__(position)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])


class _Dated(Sampler[list[tuple[int, int]]]):
    """Batches whose positions come with their epoch, which a process that outlives it cannot
    know."""

    def __init__(self, batches: "EpochBatches") -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(self.batches.epoch, position) for position in batch]


class EpochBatches(Sampler[list[int]]):
    """Batches of an epoch, in an order that only the seed and the epoch decide.

    Every process takes its part of each batch, so that the batches do not depend on how many
    processes there are. The last, incomplete batch of a larger dataset is left out.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int,
        processes: int,
        accumulate: int,
        weights: Tensor | None = None,
    ) -> None:
        """
        :param size: number of images
        :param batch_size: images for one update, of all processes and accumulated steps
        :param weights: how often each image is drawn, in relation to the others; each once in an
            epoch if not given
        :raises InputError: if there are too few images for an update, or a batch cannot be shared
        """
        if batch_size % (processes * accumulate):
            raise InputError(
                f"batch size {batch_size} is not a multiple of {processes} processes times "
                f"{accumulate} accumulated steps"
            )
        if size < batch_size:
            batch_size = size - size % (processes * accumulate)
        if batch_size == 0:
            raise InputError(
                f"{size} training images are fewer than {processes} processes times {accumulate} "
                "accumulated steps, which take one each; accumulate fewer steps"
            )
        self.size, self.seed, self.rank, self.processes = size, seed, rank, processes
        self.step_size = batch_size // accumulate
        self.updates = size // batch_size
        self.steps = self.updates * accumulate
        self.weights, self.epoch = weights, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch, 0))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = list(WeightedRandomSampler(self.weights, self.size, generator=generator))  # type: ignore[arg-type]
        for step in range(self.steps):
            batch = order[step * self.step_size : (step + 1) * self.step_size]
            share = len(batch) // self.processes
            yield batch[self.rank * share : (self.rank + 1) * share]


def hash_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed of its own for each epoch and process of a run."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def balanced(labels: np.ndarray) -> Tensor:
    """Weights with which each class is drawn alike often."""
    return torch.from_numpy(1 / np.bincount(labels)[labels])


def train_transform(recipe: Recipe, config: Mapping[str, Any]) -> Any:
    """The random transform of a recipe, from an image to a tensor."""
    if recipe.augment == "none":
        return timm.data.create_transform(**config)
    if recipe.augment == "timm":
        return timm.data.create_transform(
            **config,
            is_training=True,
            scale=recipe.scale,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment,
            re_prob=recipe.reprob,
        )
    height, width = config["input_size"][1:]
    resize, centre, *rest = timm.data.create_transform(**config).transforms
    # which of a picture that fits in whole adds the border
    whole = [centre] if config.get("crop_mode") == "border" else []
    crop = transforms.RandomCrop((height, width), padding=min(height, width) // 8)
    flip = [transforms.RandomHorizontalFlip(recipe.hflip)] if recipe.hflip else []
    return transforms.Compose([resize, *whole, crop, *flip, *rest])


def mixing(recipe: Recipe, num_classes: int, mosaics: bool) -> Any:
    """What makes other images and class probabilities of a batch and its labels; ``None`` if
    nothing does."""
    if mosaics:
        return partial(mosaic, num_classes=num_classes)
    if not (recipe.mixup or recipe.cutmix or recipe.smoothing):
        return None
    if not (recipe.mixup or recipe.cutmix):

        def smooth(inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            one_hot = F.one_hot(target, num_classes).float()
            return inputs, one_hot * (1 - recipe.smoothing) + recipe.smoothing / num_classes

        return smooth
    return timm.data.Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.smoothing,
        num_classes=num_classes,
    )
