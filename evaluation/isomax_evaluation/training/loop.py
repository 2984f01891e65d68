"""The training loop: its batches, its randomness, its checkpoints."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from rich.progress import Progress
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torchvision import transforms

from isomax.functional import NaNFeaturesError, mosaic
from isomax_adapters.timm.attaching import classifier_names
from isomax_evaluation.data import Images, Transformed
from isomax_evaluation.data.decoded import AugmentedBatches, Decoded
from isomax_evaluation.data.loading import workers_for
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import write_lines, write_whole
from isomax_evaluation.output.progress import say
from isomax_evaluation.training.jobs import Job, make_optimizer, make_scheduler
from isomax_evaluation.training.losses import LOSSES
from isomax_evaluation.training.recipes import Recipe

Batches = DataLoader | Decoded | AugmentedBatches


def fit(
    job: Job,
    model: nn.Module,
    images: Images,
    config: dict[str, Any],
    selection: Batches | None,
    output: Path,
    offer: Callable[[nn.Module, float, str], None],
    accelerator: Accelerator,
    progress: Progress,
    before: Sequence[dict[str, float]] = (),
) -> nn.Module:
    """The training loop, from the last checkpoint in ``output`` if there is one.

    All randomness of an epoch comes from the seed and the epoch's number, so that an interrupted
    run ends with the weights of an uninterrupted one.

    :param selection: images that accuracy is measured on after each epoch; may be none
    :param offer: takes the model after each epoch, its accuracy on them, and what it is
    :param before: what the head did when it was trained alone
    """
    recipe, loss = job.recipe, LOSSES[job.loss]
    criterion = loss.criterion()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(accelerator.device)
    optimizer = make_optimizer(model, recipe)
    batches = EpochBatches(
        len(images),
        recipe.batch_size,
        job.seed,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.accumulate,
    )
    loader = train_loader(job, images, config, batches, accelerator)
    scheduler = make_scheduler(optimizer, recipe, batches.updates)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    checkpoint = output / "checkpoint.pt"
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        history, before = _load_checkpoint(checkpoint, model, optimizer, ema, accelerator)
    if accelerator.is_main_process and (before or history):
        # killed between the two, the last epoch is not in here
        write_lines(output / "metrics.jsonl", [*before, *history])
    mixup = _mixup(recipe, len(images.class_names), loss.mosaic)
    optimizer = accelerator.prepare_optimizer(optimizer)
    trained, frozen = None, None
    task = progress.add_task(
        f"{job.loss}, seed {job.seed}",
        total=recipe.epochs * len(batches),
        completed=len(history) * len(batches),
    )
    for epoch in range(len(history), recipe.epochs):
        set_seed(hash_seed(job.seed, epoch, accelerator.process_index))
        batches.epoch = epoch
        if frozen != (freeze := epoch < recipe.freeze_backbone) or trained is None:
            frozen = freeze
            _freeze_backbone(model, freeze)
            trained = accelerator.prepare_model(torch.compile(model) if recipe.compile else model)
        trained.train()
        if freeze:
            _train_only_heads(model)
        started, losses = time.perf_counter(), []
        for step, (inputs, target) in enumerate(loader):
            inputs = inputs.to(accelerator.device, non_blocking=True)
            target = target.to(accelerator.device, non_blocking=True)
            if recipe.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            if loss.mosaic:
                inputs, target = mosaic(inputs, target, len(images.class_names))
            elif mixup is not None:
                inputs, target = mixup(inputs, target)
            last = (step + 1) % recipe.accumulate == 0
            with nullcontext() if last else accelerator.no_sync(trained):
                try:
                    with accelerator.autocast():
                        logits = trained(inputs)
                except NaNFeaturesError as error:
                    raise _not_finite(str(error), epoch, step, output) from error
                value = criterion(logits.float(), target)
                accelerator.backward(value / recipe.accumulate)
            losses.append(value.detach())
            if accelerator.device.type == "cpu" or step % 50 == 0:
                _stop_if_not_finite(losses, epoch, step, output)
            if last:
                if recipe.clip_grad:
                    accelerator.clip_grad_norm_(trained.parameters(), recipe.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
                update = epoch * batches.updates + (step + 1) // recipe.accumulate
                scheduler.step_update(update)
                if ema is not None:
                    ema.update(model)
            progress.advance(task)
        _stop_if_not_finite(losses, epoch, len(batches) - 1, output)
        train_loss = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
        seconds = time.perf_counter() - started
        row = {
            "epoch": epoch + 1,
            "time": time.time(),
            "train_loss": train_loss,
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_second": len(batches) * recipe.batch_size / recipe.accumulate / seconds,
        }
        told = f"training loss {train_loss:.4f}"
        if selection is not None:
            judged = ema.module if ema is not None else model
            with accelerator.autocast():
                row["val_accuracy"] = accuracy(*evaluate(judged, selection, accelerator))
            told += f", validation accuracy {row['val_accuracy']:.1%}"
            offer(judged, row["val_accuracy"], f"epoch {epoch + 1}")
        history.append(row)
        progress.update(task, description=f"{job.loss}, seed {job.seed}: {told}")
        say(progress, f"{job.loss}, seed {job.seed}: epoch {epoch + 1} of {recipe.epochs}, {told}")
        if accelerator.is_main_process:
            _save_checkpoint(checkpoint, model, optimizer, ema, history, before, accelerator)
            write_lines(output / "metrics.jsonl", [*before, *history])
        accelerator.wait_for_everyone()
    progress.remove_task(task)
    _freeze_backbone(model, False)
    return ema.module if ema is not None else model


@torch.no_grad()
def evaluate(model: nn.Module, loader: Batches, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Logits (float32) and labels of all images of a loader, in order, on the CPU.

    The loader of each process holds every ``num_processes``-th image.
    """
    model.eval()
    parts = []
    for inputs, labels in loader:
        parts.append((model(inputs.to(accelerator.device)).float().cpu(), labels.cpu()))
    mine = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    if accelerator.num_processes == 1:
        return mine
    shares = gather_object([mine])
    total = sum(len(labels) for _, labels in shares)
    logits = torch.empty(total, mine[0].shape[1])
    labels = torch.empty(total, dtype=torch.long)
    for rank, (share, share_labels) in enumerate(shares):
        logits[rank :: len(shares)] = share
        labels[rank :: len(shares)] = share_labels
    return logits, labels


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
        padding = config["input_size"][-1] // 8 if recipe.augment == "pad-crop" else 0
        hflip = recipe.hflip if recipe.augment == "pad-crop" else 0.0
        return AugmentedBatches(decoded, batches, padding, hflip)
    return DataLoader(
        Augmented(images, train_transform(recipe, config), batches),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def eval_loader(
    images: Images, config: dict[str, Any], job: Job, accelerator: Accelerator
) -> Batches:
    """This process's share of the images, in order."""
    share = images.take(
        np.arange(accelerator.process_index, len(images), accelerator.num_processes)
    )
    batch_size, workers = max(64, job.recipe.batch_size), workers_for(images, job.workers)
    if job.recipe.in_memory:
        return Decoded(share, config, accelerator.device, batch_size, workers)
    transform = timm.data.create_transform(**config)
    return DataLoader(Transformed(share, transform), batch_size=batch_size, num_workers=workers)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels that the logits get right."""
    return float((logits.argmax(dim=1) == labels).float().mean())


@dataclass(frozen=True)
class Draw:
    """What decides the random numbers of augmented images."""

    seed: int
    epoch: int


class Augmented(Transformed):
    """Images under a random transform, whose draws only the seed, the epoch and the image decide:
    not the process that makes them, nor what else draws."""

    def __init__(self, images: Images, transform: Any, draw: "Draw | EpochBatches") -> None:
        """:param draw: seed and epoch; the latter may change between passes"""
        super().__init__(images, transform)
        self.draw = draw

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed = hash_seed(self.draw.seed, self.draw.epoch, position)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            return super().__getitem__(position)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])


class EpochBatches(Sampler[list[int]]):
    """Batches of an epoch, in an order that only the seed and the epoch decide.

    Every process takes its part of each batch, so that the batches do not depend on how many
    processes there are. The last, incomplete batch of a larger dataset is left out.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int, processes: int, accumulate: int
    ) -> None:
        if batch_size % (processes * accumulate):
            raise InputError(
                f"batch size {batch_size} is not a multiple of {processes} processes times "
                f"{accumulate} accumulated steps"
            )
        if size < batch_size:
            batch_size = size - size % (processes * accumulate)
        self.size, self.seed, self.rank, self.processes = size, seed, rank, processes
        self.step_size = batch_size // accumulate
        self.updates = size // batch_size
        self.steps = self.updates * accumulate
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch, 0))
        order = torch.randperm(self.size, generator=generator).tolist()
        for step in range(self.steps):
            batch = order[step * self.step_size : (step + 1) * self.step_size]
            share = len(batch) // self.processes
            yield batch[self.rank * share : (self.rank + 1) * share]


def hash_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed of its own for each epoch and process of a run."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


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
    size = config["input_size"][-1]
    resize, *rest = timm.data.create_transform(**config).transforms
    crop = transforms.RandomCrop(size, padding=size // 8)
    flip = [transforms.RandomHorizontalFlip(recipe.hflip)] if recipe.hflip else []
    return transforms.Compose([resize, crop, *flip, *rest[1:]])


def _mixup(recipe: Recipe, num_classes: int, mosaics: bool) -> Any:
    if mosaics or not (recipe.mixup or recipe.cutmix or recipe.smoothing):
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


def _freeze_backbone(model: nn.Module, freeze: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(not freeze)
    if freeze:
        for classifier in _classifiers(model):
            for parameter in classifier.parameters():
                parameter.requires_grad_(True)


def _train_only_heads(model: nn.Module) -> None:
    # frozen layers keep their batch norm statistics and drop nothing
    model.eval()
    for classifier in _classifiers(model):
        classifier.train()


def _classifiers(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(name) for name in classifier_names(model)]


def _stop_if_not_finite(losses: list[Tensor], epoch: int, step: int, output: Path) -> None:
    if not bool(losses[-1].isfinite()):
        raise _not_finite(f"the loss is {float(losses[-1])}", epoch, step, output)


def _not_finite(what: str, epoch: int, step: int, output: Path) -> InputError:
    kept = (
        f"the checkpoint of epoch {epoch} is kept in {output}" if epoch else "no epoch was finished"
    )
    return InputError(
        f"{what}, in epoch {epoch + 1}, step {step + 1}; {kept}. Lower the learning rate, or clip "
        "the gradients"
    )


def _save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Any,
    ema: ModelEmaV3 | None,
    history: list[dict[str, Any]],
    before: Sequence[dict[str, Any]],
    accelerator: Accelerator,
) -> None:
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema is not None else None,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "history": json.dumps(history),
        "before": json.dumps(list(before)),
    }
    write_whole(path, lambda partial: torch.save(content, partial))


def _load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    accelerator: Accelerator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Into model, optimiser and the rest; what was done before, and by the head alone."""
    content = torch.load(path, map_location=accelerator.device, weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if ema is not None:
        ema.load_state_dict(content["ema"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    return json.loads(content["history"]), json.loads(content.get("before", "[]"))
