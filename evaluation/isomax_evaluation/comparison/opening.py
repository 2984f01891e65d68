"""What is found out before any work: the models that are given, and what cannot be."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import Progress

from isomax_adapters.pytorch_ood import Parts, why_not
from isomax_evaluation.comparison.deploying import obstacle, split_row
from isomax_evaluation.comparison.plan import Plan
from isomax_evaluation.comparison.runs import divide, runs_of
from isomax_evaluation.comparison.sets import Sets
from isomax_evaluation.detection.models import Model
from isomax_evaluation.detection.opening import open_given
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.training.jobs import build_model, data_config
from isomax_evaluation.training.train import ready_to_train


def row_of(text: str, plan: Plan) -> tuple[str, str, str]:
    """The row that is to be exported.

    :raises InputError: if the comparison has none such
    """
    model, detector = split_row(text)
    names = [*plan.losses, *dict.fromkeys(given.name for given in plan.given)]
    for what, one, known in (("model", model, names), ("detector", detector, plan.detectors)):
        if one not in known:
            raise InputError(
                f"the row to export is {text}, and the comparison has no {what} {one}; it has "
                f"{', '.join(known)}"
            )
    return model, detector, "asked for"


def open_models(plan: Plan, sets: Sets, device: Any) -> list[Model]:
    """The models that are given.

    :raises InputError: if one cannot be had, knows other classes, or no detector can work
    """
    class_names = sets.train.class_names
    if plan.losses and sets.tensors:
        raise InputError(
            "training takes images, and the ID data gives tensors; leave the losses out, or give "
            "data sets without a transform"
        )
    opened = [
        open_given(given, class_names, plan.preprocessing, plan.job.decoding, sets.tensors, device)
        for given in plan.given
    ]
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
    names = ", ".join([*plan.losses, *(given.name for given in plan.given)])
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise InputError(f"no detector can work with {names}: {listed}; add one that can")


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
) -> list[str]:
    """Try one batch with each loss that has not begun to train.

    :return: what will not be what was asked for
    :raises InputError: if there are too few images, or one cannot be trained
    """
    first = [run for run in runs_of(output, plan, []) if run.seed == 0]
    training = divide(first[0], sets, plan.job.alpha, False).training
    tried = [
        ready_to_train(run.job, training, run.folder, accelerator, progress)
        for run in first
        if run.job is not None
    ]
    return list(dict.fromkeys(doubt for one in tried if one for doubt in one.doubts))
