"""What a training will be, said before it begins: images, model, recipe, memory and time."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import psutil
import timm.data
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from isomax_adapters.runtime.decoding import open_image
from isomax_evaluation.data.images import Images, Transformed
from isomax_evaluation.data.loading import workers_for
from isomax_evaluation.data.splitting import Split
from isomax_evaluation.training.batches import EpochBatches, mixing, train_loader
from isomax_evaluation.training.dry_run import Tried, dry_run
from isomax_evaluation.training.head_first import epochs_of_head, epochs_to_offer
from isomax_evaluation.training.jobs import Job, build_model, data_config
from isomax_evaluation.training.losses import LOSSES, criterion_of
from isomax_evaluation.training.recipes import learning_rate

SHARE = 0.8  # of the free memory that a batch may take
WORKSPACE = 1.25  # what a layer needs while it is computed, beside what is kept
FEWEST_UPDATES = 20  # in an epoch
BATCHES = 3  # that are timed
AT_ONCE = 16  # images of which features are timed
SHOWN = 4  # sizes and modes
LOOKED_AT = 2000  # files


def lines_of(
    job: Job, divided: Split, test: Images, tried: Tried, accelerator: Accelerator
) -> list[str]:
    """A line each of the images' parts, their files, the model, the recipe, and what it takes."""
    with torch.device("meta"):
        model = build_model(job, len(divided.training.class_names), pretrained=False)
    config, recipe = data_config(job, model), job.recipe
    kept = "last" if divided.selection is None else recipe.keep
    parts = [("training", divided.training), ("selection", divided.selection)]
    parts += [("calibration", divided.calibration), ("test", test)]
    counted = [
        f"{len(images):,} {name}" for name, images in parts if images is not None and len(images)
    ]
    whole = ", ".join(counted)
    channels, height, width = config["input_size"]
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"images: {whole}; the smallest class has {_smallest(divided.training)} to train on",
        *_of_files(divided.training),
        f"model: {job.model}, {parameters:,} parameters, {job.loss}; images become "
        f"{channels}x{height}x{width} ({config['crop_mode']}, {config['crop_pct']:g} of them, "
        f"{config['interpolation']})",
        f"recipe: {_steps(job, divided, tried)}; the {kept} weights are kept",
    ]
    if not recipe.epochs:
        return lines
    needed = tried.fixed + WORKSPACE * tried.per_image * tried.images
    free = free_memory(accelerator.device)
    lines.append(
        f"memory: about {_gigabytes(needed)} of the {_gigabytes(free)} that are free on "
        f"{accelerator.device.type}; the largest batch that fits is "
        f"{largest_batch(job, tried, len(divided.training), accelerator, updates=1)}"
    )
    return lines


def _steps(job: Job, divided: Split, tried: Tried) -> str:
    """What is trained, one after the other."""
    recipe, steps = job.recipe, []
    alone = before = 0
    if job.source.starts_trained:
        before = epochs_of_head(recipe.head_first, recipe.epochs, job.loss)
        alone = epochs_to_offer(recipe, job.loss, divided.selection is not None)
    if alone:
        copies = f" and {recipe.augment_copies} augmented copies" if recipe.augment_copies else ""
        steps.append(
            f"the head alone for {alone} epochs on kept features of unchanged images{copies}"
            + ("" if before else " (to fall back on)")
        )
    if recipe.epochs:
        steps.append(
            f"{recipe.epochs} epochs of {tried.updates} updates of {recipe.batch_size} images, "
            f"{recipe.opt} at {learning_rate(recipe):g}, "
            f"{'batch norm in evaluation mode, ' if recipe.freeze_bn else ''}{recipe.augment} "
            "augmentation"
        )
    return ", then ".join(steps) or "nothing is trained but where the head begins"


def times(job: Job, divided: Split, test: Images, accelerator: Accelerator) -> list[str]:
    """A line of how long each part takes, measured on a few batches of the images themselves."""
    found = []
    if job.source.starts_trained:
        found.append(_time_of_features(job, divided, test, accelerator))
    if job.recipe.epochs:
        found.append(_time_of_an_epoch(job, divided.training, accelerator))
    return found


def _time_of_features(job: Job, divided: Split, test: Images, accelerator: Accelerator) -> str:
    """Of the pass that the head is trained on, and of what is measured at the end; one process
    makes them."""
    training = divided.training
    few = _few(training, (BATCHES + 1) * AT_ONCE)
    model = build_model(job, len(training.class_names), pretrained=False)
    model = model.to(accelerator.device).eval()
    images = Transformed(few, timm.data.create_transform(**data_config(job, model)))

    @torch.no_grad()
    def look(inputs: Tensor, _: Tensor) -> None:
        model(inputs.to(accelerator.device))

    loader: DataLoader = DataLoader(images, AT_ONCE)
    each = _seconds_per_image(loader, look, workers_for(few, job.workers), accelerator)
    copies = 1 + job.recipe.augment_copies
    selecting = 0 if divided.selection is None else len(divided.selection)
    count = copies * len(training) + selecting
    last = selecting + len(divided.calibration) + len(test)
    return (
        f"time: {1 / each:,.0f} images a second, measured on {len(few)}; about "
        f"{_duration(each * count)} for the features of {count:,} images, seconds more for the "
        f"head, and {_duration(each * last)} to try the model on {last:,} at the end"
    )


def _time_of_an_epoch(job: Job, training: Images, accelerator: Accelerator) -> str:
    """Of images that are read, augmented and trained on."""
    recipe, classes = job.recipe, len(training.class_names)
    processes = accelerator.num_processes
    whole = EpochBatches(
        len(training), recipe.batch_size, job.seed, 0, processes, recipe.accumulate
    )
    step = whole.step_size
    few = _few(training, (BATCHES + 1) * step)
    batches = EpochBatches(len(few), min(step, len(few)), job.seed, 0, processes, 1)
    model = build_model(job, classes, pretrained=False).to(accelerator.device).train()
    config = data_config(job, model)
    loader = train_loader(replace(job, workers=0), few, config, batches, accelerator)
    mix = mixing(recipe, classes, LOSSES[job.loss].mosaic)
    criterion = criterion_of(LOSSES[job.loss], recipe.class_weights, training)
    criterion = criterion.to(accelerator.device)

    def learn(inputs: Tensor, target: Tensor) -> None:
        inputs, target = inputs.to(accelerator.device), target.to(accelerator.device)
        if mix is not None:
            inputs, target = mix(inputs, target)
        with accelerator.autocast():
            logits = model(inputs)
        criterion(logits.float(), target).backward()

    workers = workers_for(few, job.workers)
    each = _seconds_per_image(loader, learn, workers, accelerator) / processes
    total = each * whole.steps * step
    return (
        f"time: {1 / each:,.0f} images a second, measured on {len(few)}; an epoch takes about "
        f"{_duration(total)}, {recipe.epochs} of them {_duration(total * recipe.epochs)}"
    )


def _few(images: Images, count: int) -> Images:
    """Some of them, from everywhere."""
    return images.take(np.linspace(0, len(images) - 1, min(len(images), count)).astype(int))


def _seconds_per_image(
    loader: Iterable[tuple[Tensor, Tensor]],
    work: Callable[[Tensor, Tensor], None],
    workers: int,
    accelerator: Accelerator,
) -> float:
    r"""How long an image takes, :math:`\max(c, r / w)` beside an accelerator and :math:`c + r / w`
    where :math:`w` processes read on the processor that also computes; :math:`r` to read one and
    :math:`c` to compute with it are measured in turns, without the first batch.

    :param loader: reads in this process
    :param workers: 0 for reading in turns with computing
    """
    read: list[float] = []
    computed: list[float] = []
    images: list[int] = []
    started = time.perf_counter()
    for inputs, target in loader:
        loaded = time.perf_counter()
        work(inputs, target)
        if accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        done = time.perf_counter()
        read.append(loaded - started)
        computed.append(done - loaded)
        images.append(len(inputs))
        started = time.perf_counter()
    first = 1 if len(images) > 1 else 0
    count = sum(images[first:])
    reading = sum(read[first:]) / count / max(1, workers)
    computing = sum(computed[first:]) / count
    if workers and accelerator.device.type != "cpu":
        return max(reading, computing)
    return reading + computing


def largest_batch(
    job: Job, tried: Tried, size: int, accelerator: Accelerator, updates: int = FEWEST_UPDATES
) -> int:
    """The most images per update whose training fits into the memory that is free, in whole
    multiples of eight (and of processes and accumulated steps), so that an epoch still has some
    updates.

    .. math:: B = \\frac{s M - F}{1.25 \\, a}

    with M free bytes, of which a share s is used, F those of weights, gradients and optimiser, a
    those kept per image.

    :param size: number of training images
    :param updates: how many an epoch is to have at least
    """
    free = SHARE * free_memory(accelerator.device) - tried.fixed
    fitting = free / (WORKSPACE * max(1.0, tried.per_image))
    several = accelerator.num_processes * job.recipe.accumulate
    fitting = min(fitting * several, size / updates)
    unit = math.lcm(8, several)
    return max(several if several > 1 else 2, int(fitting // unit) * unit)


def with_largest_batch(job: Job, training: Images, accelerator: Accelerator) -> Job:
    """The job with as many images per update as fit, tried out.

    :raises InputError: if nothing fits
    """
    several = accelerator.num_processes * job.recipe.accumulate
    small = replace(job, recipe=replace(job.recipe, batch_size=max(8, several)))
    tried = dry_run(small, training, accelerator)
    size = largest_batch(job, tried, len(training), accelerator)
    return replace(job, recipe=replace(job.recipe, batch_size=size))


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the model is trained."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _smallest(images: Images) -> int:
    return int(np.bincount(images.labels, minlength=len(images.class_names)).min())


def _of_files(images: Images) -> list[str]:
    if not images.paths:
        return []
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    looked = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)
    for position in looked:
        try:
            with open_image(images.name_of(position)) as image:
                sizes[f"{image.width}x{image.height}"] += 1
                modes[_mode(image)] += 1
        except OSError:  # readable() names the file
            continue
    few = f" of {len(looked):,} that were looked at" * (len(looked) < len(images))
    return [f"files: sizes {_most(sizes)}; modes {_most(modes)}{few}"]


def _mode(image: Image.Image) -> str:
    return "grey of more than 8 bits" if image.mode.startswith("I") else image.mode


def _most(counts: Counter[str]) -> str:
    shown = [f"{name} {count:,}" for name, count in counts.most_common(SHOWN)]
    rest = len(counts) - len(shown)
    return ", ".join(shown + ([f"{rest} others"] if rest else []))


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
