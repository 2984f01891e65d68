"""Train or fine-tune a timm model with any of the losses: resumable, on one process or several."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from rich.progress import Progress
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torchvision import transforms

from isomax.calibration import Calibration, RejectionThreshold
from isomax.functional import NaNFeaturesError, mosaic
from isomax_adapters.timm import attach, create_model, save_model
from isomax_adapters.timm.attaching import classifier_names, head_modules
from isomax_evaluation import data
from isomax_evaluation.data import Images, Transformed
from isomax_evaluation.errors import InputError
from isomax_evaluation.losses import LOSSES
from isomax_evaluation.outputs import claim_folder, write_lines, write_whole
from isomax_evaluation.progress import progress_bar
from isomax_evaluation.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Job:
    """One model to train: what, on what, how."""

    model: str
    loss: str
    recipe: Recipe
    seed: int = 0
    pretrained: bool = False
    small_images: bool = False
    image_size: int | None = None
    alpha: float = 0.05
    workers: int = 2


def train(
    dataset: str,
    output: str | Path,
    model: str = "resnet18",
    loss: str = "isomax",
    recipe: Recipe | str = "finetune",
    seed: int = 0,
    pretrained: bool = False,
    small_images: bool = False,
    image_size: int | None = None,
    alpha: float = 0.05,
    root: str | None = None,
    images_per_class: int | None = None,
    val_share: float = 0.1,
    skip_bad_images: bool = False,
    workers: int = 2,
) -> Path:
    """Train a model and calibrate it on held-out training images; the test images are not touched
    until the end.

    Run again with the same arguments, it goes on from the last finished epoch.

    :param dataset: name or folder, see :mod:`isomax_evaluation.data`
    :param output: folder that gets ``model/`` (a model folder), ``metrics.jsonl`` and checkpoints
    :param model: a timm architecture
    :param loss: one of ``softmax``, ``isomax``, ``isomax+``, ``dismax``, ``dismax+fpr``
    :param recipe: a recipe or the name of one
    :param pretrained: start from timm's pretrained weights
    :param small_images: a 3x3 stride-1 stem without pooling, and 32x32 inputs
    :param image_size: input height and width, if not the model's own
    :param alpha: false-alarm rate that the rejection threshold is calibrated for
    :param root: folder that named datasets are read from
    :param images_per_class: use at most so many training images of each class
    :param val_share: share of the training images held out for validation and calibration
    :param skip_bad_images: leave images that do not decode out, rather than refuse to start
    :param workers: processes that decode images
    :return: the model folder
    :raises InputError: if anything given cannot be used, before training starts
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    job = Job(model, loss, recipe, seed, pretrained, small_images, image_size, alpha, workers)
    check_job(job)
    train_images, test_images = data.open_splits(dataset, root)
    train_images = data.limit_per_class(train_images, images_per_class)
    output = Path(output)
    accelerator = make_accelerator(recipe)
    with progress_bar(enabled=accelerator.is_main_process) as progress:
        train_images = readable(train_images, skip_bad_images, workers, progress)
        test_images = readable(test_images, skip_bad_images, workers, progress)
        train_images, val_images = data.stratified_split(train_images, val_share, seed)
        settings = {
            "data": dataset,
            "images": {"train": len(train_images), "validation": len(val_images)},
            "class_names": list(train_images.class_names),
            **asdict(job),
        }
        settings.pop("workers")
        if accelerator.is_main_process:
            claim_folder(output, settings)
        accelerator.wait_for_everyone()
        return train_model(
            job, train_images, val_images, test_images, output, accelerator, progress
        )


def check_job(job: Job) -> None:
    """Refuse what cannot work, before any work.

    :raises InputError: naming the value and what it may be
    """
    if job.loss not in LOSSES:
        raise InputError(f"unknown loss {job.loss!r}; choose from {', '.join(LOSSES)}")
    if job.recipe.augment not in ("timm", "pad-crop", "none"):
        raise InputError(f"unknown augmentation {job.recipe.augment!r}; timm, pad-crop or none")
    if job.recipe.mixed_precision not in ("no", "bf16", "fp16"):
        raise InputError(f"unknown mixed_precision {job.recipe.mixed_precision!r}; no, bf16, fp16")
    if job.recipe.epochs < 1 or job.recipe.batch_size < 2:
        raise InputError(
            f"epochs is {job.recipe.epochs} and batch size {job.recipe.batch_size}; expected at "
            "least 1 and 2"
        )
    mixes = job.recipe.mixup or job.recipe.cutmix or job.recipe.smoothing
    if LOSSES[job.loss].mosaic and mixes:
        raise InputError(f"{job.loss} makes mosaics of its own; switch mixup and smoothing off")
    try:
        RejectionThreshold(job.alpha)
        with torch.device("meta"):
            model = build_model(job, num_classes=2, pretrained=False)
        _scheduler(_optimizer(model, job.recipe), job.recipe, updates=1)
    except ValueError as error:
        raise InputError(str(error)) from error


def build_model(job: Job, num_classes: int, pretrained: bool | None = None) -> nn.Module:
    """The timm model of a job, with its head. The same seed gives the same backbone for every
    loss."""
    torch.manual_seed(job.seed)
    head = LOSSES[job.loss].head
    kwargs: dict[str, Any] = {"small_images": True} if job.small_images else {}
    cfg = timm.models.get_pretrained_cfg(job.model) if timm.is_model(job.model) else None
    if job.image_size and cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = job.image_size
    model = create_model(
        f"softmax_{job.model}" if job.small_images else job.model,
        pretrained=job.pretrained if pretrained is None else pretrained,
        num_classes=num_classes,
        **kwargs,
    )
    return attach(model, head) if head else model


def data_config(job: Job, model: nn.Module) -> dict[str, Any]:
    """Preprocessing, as ``timm.data.create_transform`` takes it."""
    size = job.image_size or (32 if job.small_images else None)
    args: dict[str, Any] = {"img_size": size}
    if size is not None and size <= 64:
        args["crop_pct"] = 1.0  # small images have no border to spare
    return dict(timm.data.resolve_model_data_config(model, args))


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, processes and precision, as the launcher set them up."""
    # a process may train again, with another precision
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=recipe.mixed_precision,
        # without this Accelerate takes several processes on the CPU for one each
        cpu=not torch.accelerator.is_available(),
    )


def readable(images: Images, skip: bool, workers: int, progress: Progress) -> Images:
    """Images that all decode.

    :raises InputError: if some do not and ``skip`` is false
    """
    if images.paths is None:
        return images
    task = progress.add_task(f"checking {images.name}", total=len(images))
    bad = data.unreadable(images, workers, lambda done: progress.advance(task, done))
    progress.remove_task(task)
    if not bad:
        return images
    listed = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    if not skip:
        raise InputError(
            f"{len(bad)} of {len(images)} images of {images.name} do not decode: {listed}{more}; "
            "remove them, or leave them out with --skip-bad-images"
        )
    progress.console.print(f"left out {len(bad)} images that do not decode: {listed}{more}")
    paths = np.array(images.paths)[images.indices]
    return images.take(np.flatnonzero(~np.isin(paths, list(bad))))


def train_model(
    job: Job,
    train_images: Images,
    val_images: Images,
    test_images: Images | None,
    output: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Path:
    """Train one model into its output folder; nothing to do if it is there already.

    :return: the model folder
    """
    folder = output / "model"
    if (folder / "calibration.json").is_file():
        return folder
    classes = len(train_images.class_names)
    needed = RejectionThreshold(job.alpha).samples_needed
    if len(val_images) < needed:
        raise InputError(
            f"alpha={job.alpha} takes {needed} validation images, there are {len(val_images)}; "
            "hold out more of the training images, or choose a larger alpha"
        )
    model = build_model(job, classes)
    config = data_config(job, model)
    eval_transform = timm.data.create_transform(**config)
    val_loader = _eval_loader(val_images, eval_transform, job, accelerator)
    model = fit(job, model, train_images, config, val_loader, output, accelerator, progress)
    logits, labels = evaluate(model, val_loader, accelerator)
    heads = head_modules(model)
    score = heads[0].score if heads else "entropic_score"
    calibration = Calibration.fit(logits, labels, score, job.alpha)
    summary = {"val_accuracy": _accuracy(logits, labels), "temperature": calibration.temperature}
    if test_images is not None:
        test_loader = _eval_loader(test_images, eval_transform, job, accelerator)
        logits, labels = evaluate(model, test_loader, accelerator)
        scores = calibration.score_of(logits)
        summary["test_accuracy"] = _accuracy(logits, labels)
        summary["test_false_alarm_rate"] = float((scores > calibration.threshold).float().mean())
    if accelerator.is_main_process:
        write_lines(output / "summary.json", [summary])
        save_model(model, folder, train_images.class_names, config, calibration)
    accelerator.wait_for_everyone()
    return folder


def fit(
    job: Job,
    model: nn.Module,
    images: Images,
    config: dict[str, Any],
    val_loader: DataLoader,
    output: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> nn.Module:
    """The training loop, from the last checkpoint in ``output`` if there is one.

    All randomness of an epoch comes from the seed and the epoch's number, so that an interrupted
    run ends with the weights of an uninterrupted one.
    """
    recipe, loss = job.recipe, LOSSES[job.loss]
    criterion = loss.criterion()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(accelerator.device)
    optimizer = _optimizer(model, recipe)
    batches = _EpochBatches(
        len(images),
        recipe.batch_size,
        job.seed,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.accumulate,
    )
    loader = DataLoader(
        Transformed(images, _train_transform(recipe, config)),
        batch_sampler=batches,
        num_workers=images_workers(images, job),
        pin_memory=accelerator.device.type == "cuda",
    )
    scheduler = _scheduler(optimizer, recipe, batches.updates)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    checkpoint = output / "checkpoint.pt"
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        history = _load_checkpoint(checkpoint, model, optimizer, ema, accelerator)
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
        judged = ema.module if ema is not None else model
        logits, labels = evaluate(judged, val_loader, accelerator)
        history.append(
            {
                "epoch": epoch + 1,
                "time": time.time(),
                "train_loss": train_loss,
                "val_accuracy": _accuracy(logits, labels),
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": len(batches) * recipe.batch_size / recipe.accumulate / seconds,
            }
        )
        progress.update(
            task, description=f"{job.loss}, seed {job.seed}: {history[-1]['val_accuracy']:.1%}"
        )
        if accelerator.is_main_process:
            write_lines(output / "metrics.jsonl", history)
            _save_checkpoint(checkpoint, model, optimizer, ema, history, accelerator)
        accelerator.wait_for_everyone()
    progress.remove_task(task)
    _freeze_backbone(model, False)
    return ema.module if ema is not None else model


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Logits (float32) and labels of all images of a loader, in order, on the CPU.

    The loader of each process holds every ``num_processes``-th image.
    """
    model.eval()
    parts = []
    for inputs, labels in loader:
        with accelerator.autocast():
            parts.append((model(inputs.to(accelerator.device)).float().cpu(), labels))
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


def images_workers(images: Images, job: Job) -> int:
    """Decoding files pays for processes of its own; images in memory do not."""
    return job.workers if images.paths else 0


class _EpochBatches(Sampler[list[int]]):
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


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"timm cannot make the optimiser {recipe.opt!r}: {error}") from error
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Any:
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        decay_epochs=max(1, recipe.epochs // 3),
        decay_milestones=list(recipe.decay_milestones),
        decay_rate=recipe.decay_rate,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    if scheduler is None:
        raise InputError(f"timm has no learning rate schedule {recipe.sched!r}")
    return scheduler


def _train_transform(recipe: Recipe, config: dict[str, Any]) -> Any:
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


def _eval_loader(images: Images, transform: Any, job: Job, accelerator: Accelerator) -> DataLoader:
    share = images.take(
        np.arange(accelerator.process_index, len(images), accelerator.num_processes)
    )
    return DataLoader(
        Transformed(share, transform),
        batch_size=max(64, job.recipe.batch_size),
        num_workers=images_workers(images, job),
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
    accelerator: Accelerator,
) -> None:
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema is not None else None,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "history": json.dumps(history),
    }
    write_whole(path, lambda partial: torch.save(content, partial))


def _load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    content = torch.load(path, map_location=accelerator.device, weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if ema is not None:
        ema.load_state_dict(content["ema"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    history: list[dict[str, Any]] = json.loads(content["history"])
    return history


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    correct = float((logits.argmax(dim=1) == labels).float().mean())
    return math.nan if math.isnan(correct) else correct
