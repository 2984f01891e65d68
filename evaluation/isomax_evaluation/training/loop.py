"""The training loop and its checkpoints."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isomax.functional import NaNFeaturesError
from isomax_adapters.timm.attaching import classifier_names
from isomax_adapters.timm.statistics import layers_with_statistics
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import write_lines, write_whole
from isomax_evaluation.output.progress import Progress, say
from isomax_evaluation.training.batches import (
    Batches,
    EpochBatches,
    balanced,
    hash_seed,
    mixing,
    train_loader,
)
from isomax_evaluation.training.best import WHOLE, Offer
from isomax_evaluation.training.jobs import Job, head_factor, make_optimizer, make_scheduler
from isomax_evaluation.training.losses import LOSSES, criterion_of


def fit(
    job: Job,
    model: nn.Module,
    images: Images,
    config: dict[str, Any],
    selection: Batches | None,
    output: Path,
    offer: Offer,
    accelerator: Accelerator,
    progress: Progress,
    before: Sequence[dict[str, float]] = (),
) -> nn.Module:
    """The training loop, from the last checkpoint in ``output`` if there is one.

    All randomness of an epoch comes from the seed and the epoch's number, so that an interrupted
    run ends with the weights of an uninterrupted one.

    :param selection: images that accuracy is measured on after each epoch; may be none
    :param offer: takes the model after each epoch, which of them it has right, and what it is
    :param before: what the head did when it was trained alone
    """
    recipe, loss = job.recipe, LOSSES[job.loss]
    criterion = criterion_of(loss, recipe.class_weights, images).to(accelerator.device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(accelerator.device)
    optimizer = make_optimizer(model, recipe, head_factor(job))
    batches = EpochBatches(
        len(images),
        recipe.batch_size,
        job.seed,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.accumulate,
        balanced(images.labels) if recipe.balanced_sampling else None,
    )
    loader = train_loader(job, images, config, batches, accelerator)
    scheduler = make_scheduler(optimizer, recipe, batches.updates)
    ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    checkpoint = output / "checkpoint.pt"
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        history, before = _load_checkpoint(checkpoint, model, optimizer, ema, accelerator)
    if accelerator.is_main_process and (before or history):
        # killed between the two, the last epoch is not in here
        write_lines(output / "metrics.jsonl", [*before, *history])
    mix = mixing(recipe, len(images.class_names), loss.mosaic)
    optimizer = accelerator.prepare_optimizer(optimizer)
    trained, frozen = None, None
    task = progress.begin(f"{job.loss}, seed {job.seed}", recipe.epochs * len(batches))
    progress.step(task, len(history) * len(batches), None)
    for epoch in range(len(history), recipe.epochs):
        set_seed(hash_seed(job.seed, epoch, accelerator.process_index))
        if isinstance(loader, DataLoader):
            # as PyTorch's loaders draw a seed for their processes, but for those that live on
            torch.empty((), dtype=torch.int64).random_()
        batches.epoch = epoch
        if frozen != (freeze := epoch < recipe.freeze_backbone) or trained is None:
            frozen = freeze
            _freeze_backbone(model, freeze)
            trained = accelerator.prepare_model(torch.compile(model) if recipe.compile else model)
        trained.train()
        if freeze:
            _train_only_heads(model)
        if recipe.freeze_bn:
            for layer in layers_with_statistics(model):
                layer.eval()
        started, losses = time.perf_counter(), []
        for step, (inputs, target) in enumerate(loader):
            inputs = inputs.to(accelerator.device, non_blocking=True)
            target = target.to(accelerator.device, non_blocking=True)
            if recipe.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            if mix is not None:
                inputs, target = mix(inputs, target)
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
                    ema.update(model, step=update)
            progress.step(task, 1, None)
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
                logits, labels = evaluate(judged, selection, accelerator)
            row["val_accuracy"] = accuracy(logits, labels)
            told += f", validation accuracy {row['val_accuracy']:.1%}"
            offer(judged, logits.argmax(dim=1) == labels, WHOLE, f"epoch {epoch + 1}")
        history.append(row)
        progress.step(task, 0, f"{job.loss}, seed {job.seed}: {told}")
        say(progress, f"{job.loss}, seed {job.seed}: epoch {epoch + 1} of {recipe.epochs}, {told}")
        if accelerator.is_main_process:
            _save_checkpoint(checkpoint, model, optimizer, ema, history, before, accelerator)
            write_lines(output / "metrics.jsonl", [*before, *history])
        accelerator.wait_for_everyone()
    progress.end(task)
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


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels that the logits get right."""
    return float((logits.argmax(dim=1) == labels).double().mean())


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
