"""What is found out before any work: the models that are given, and what cannot be."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from isomax_adapters.pytorch_ood import Parts, why_not
from isomax_evaluation.comparison.deploying import obstacle, split_row
from isomax_evaluation.comparison.plan import Plan
from isomax_evaluation.comparison.runs import divide, runs_of
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import open_given
from isomax_evaluation.output.errors import InputError, one_line
from isomax_evaluation.output.progress import Progress, warn
from isomax_evaluation.training.jobs import build_model, data_config, fetch_weights
from isomax_evaluation.training.train import ready_to_train


def row_of(text: str, plan: Plan) -> tuple[str, str, str]:
    """The row that is to be exported.

    :raises InputError: if the comparison has none such
    """
    model, detector = split_row(text)
    for what, one, known in (("model", model, plan.models), ("detector", detector, plan.detectors)):
        if one not in known:
            raise InputError(
                f"the row to export is {text}, and the comparison has no {what} {one}; it has "
                f"{', '.join(known)}"
            )
    return model, detector, "asked for"


def open_models(
    plan: Plan,
    sets: Sets,
    device: Any,
    progress: Progress,
    names_given: Sequence[str] | None = None,
    in_given_order: bool = False,
) -> list[Model]:
    """The models that are given.

    :param names_given: of the classes of those that have none, in the order of their logits
    :param in_given_order: as :func:`~isomax_evaluation.detection.opening.open_given` takes it

    :raises InputError: if one cannot be had, knows other classes, or no detector can work
    """
    class_names = sets.train.class_names
    if plan.losses and sets.tensors:
        raise InputError(
            "training takes images, and the ID data gives tensors; leave the losses out, or give "
            "data sets without a transform"
        )
    opened = [
        open_given(
            given,
            sets.train,
            plan.preprocessing,
            plan.job.decoding,
            sets.tensors,
            device,
            progress,
            names_given,
            in_given_order,
        )
        for given in plan.given
    ]
    if sets.tensors:
        for model in opened:
            _refuse_what_it_cannot_take(model, sets.train.image(0))
    reasons: dict[str, str] = {}
    for parts in [
        *(model.parts for model in opened),
        *(
            Parts(build_model(replace(plan.job, loss=loss), len(class_names), False).eval())
            for loss in plan.losses
        ),
    ]:
        reasons = why_not(parts, plan.detectors)
        if len(reasons) < len(plan.detectors):
            return opened
    names = ", ".join(plan.models)
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise InputError(f"no detector can work with {names}: {listed}; add one that can")


def _refuse_what_it_cannot_take(model: Model, image: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            model.parts.model(image[None].to(model.parts.device))
    except RuntimeError as error:  # of layers for other channels or another size
        raise InputError(
            f"{model.name} cannot take the ID data's tensors, of shape {list(image.shape)}: "
            f"{one_line(error)}"
        ) from error


def refuse_what_no_file_holds(
    row: tuple[str, str, str], plan: Plan, opened: Sequence[Model], classes: int
) -> None:
    """
    :raises InputError: if the row that is to be exported cannot be
    """
    name, detector, _ = row
    model = next((model for model in opened if model.name == name), None)
    if model is None:
        job = replace(plan.job, loss=name)
        network = build_model(job, classes, False).eval()
        model = Model(name, 0, Parts(network), (), data_config(job, network))
    if reason := obstacle(model, detector):
        raise InputError(f"{name}/{detector} cannot be a file: {reason}")


def ready_with_each(
    plan: Plan, sets: Sets, output: Path, accelerator: Accelerator, progress: Progress
) -> None:
    """Try one batch with each loss that has not begun to train; warn of what will not be what was
    asked for.

    :raises InputError: if there are too few images, or one cannot be trained
    """
    fetch_weights(plan.job, output)
    first = [run for run in runs_of(output, plan, []) if run.seed == 0]
    training = divide(first[0], sets, plan.job.alpha, False).training
    tried = [
        ready_to_train(run.job, training, run.folder, accelerator, progress)
        for run in first
        if run.job is not None
    ]
    for doubt in dict.fromkeys(doubt for one in tried if one for doubt in one.doubts):
        warn(progress, doubt)
