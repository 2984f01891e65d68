"""Weights from a file: what it holds, whether it fits a model, and what does not.

Nothing is unpickled but tensors, numbers and strings, and nothing of a file enters a model before
all of it is known to fit.
"""

import argparse
import pickle
import sys
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from timm.utils import load_checkpoint_metadata
from torch import Tensor

from isomax.heads import HEADS
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm.attaching import TimmModel, classifier_names, head_named, head_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  #: where timm looks for weights
_COUNT = ".num_batches_tracked"  # torch itself fills it in, for files older than it
_WRAPPED = "timm_model."  # before each name, in what Transformers' TimmWrapper saves


class CheckpointError(InputError):
    """A file that holds no weights, or weights that do not fit; says what is wrong, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file, and what the training script that saved it wrote beside them."""

    path: Path
    tensors: dict[str, Tensor]
    #: arguments of the script, as timm's ``train.py`` saves them; empty if there are none
    args: dict[str, Any]
    architecture: str | None  #: a name that timm has, if the file says one


def read_checkpoint(path: str | Path, use_ema: bool = True) -> Checkpoint:
    """Read a checkpoint with timm's own helpers.

    Weights may be at the top of the file or under ``state_dict``, ``model``, ``state_dict_ema`` or
    ``model_ema``, and their names may have the prefixes that ``DistributedDataParallel``,
    ``torch.compile`` and Transformers' ``TimmWrapper`` give them.

    :param path: a ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.tar`` or ``.bin`` file of
        tensors, numbers, strings and timm's training arguments
    :param use_ema: prefer the moving average of the weights, where there is one
    :raises CheckpointError: if there is no such file, it is damaged, needs code to be read, or
        holds no tensors by name, or some that are no numbers
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a file, or read a model folder as one")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path} is no checkpoint; expected one of {', '.join(SUFFIXES)}")
    try:
        tensors = load_state_dict(str(path), use_ema=use_ema)
        # of the older format, which is not a zip file, only tensors are read
        saved = load_checkpoint_metadata(str(path)) if zipfile.is_zipfile(path) else {}
    except Exception as error:
        raise CheckpointError(_why_unreadable(path, error)) from error
    others = {name: type(v).__name__ for name, v in tensors.items() if not isinstance(v, Tensor)}
    if others or not tensors:
        raise CheckpointError(
            f"{path} has {_first([f'{name} ({kind})' for name, kind in others.items()])}; expected "
            f"tensors by name, at the top or under {', '.join(NESTED)}"
        )
    if all(name.startswith(_WRAPPED) for name in tensors):
        tensors = {name.removeprefix(_WRAPPED): tensor for name, tensor in tensors.items()}
    check_finite(tensors, str(path))
    args = saved.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = args if isinstance(args, dict) else {}
    named = [name for name in (args.get("model"), saved.get("arch")) if isinstance(name, str)]
    architecture = next((name for name in named if ":" in name or timm.is_model(name)), None)
    return Checkpoint(path, tensors, args, architecture)


def load_weights(
    model: TimmModel, checkpoint: Checkpoint, training_follows: bool = False
) -> list[str]:
    """Load a checkpoint into a model: all of it, or nothing.

    What timm's filter for the architecture can convert is converted: position embeddings of another
    input size, the formats of the original repositories.

    :param model: a timm model, with or without one of our heads
    :param checkpoint: what :func:`read_checkpoint` returned
    :param training_follows: if the checkpoint's classifier is of another kind or for another
        number of classes, leave it out and keep the model's. The prototypes and the distance scale
        of a head are its classifier.
    :return: names of the tensors that were left out
    :raises CheckpointError: naming the tensors that are missing, unexpected or of the wrong shape
    """
    classifiers = classifier_names(model)
    own, tensors = model.state_dict(), checkpoint.tensors
    ours, own_rest = _apart(own, classifiers)
    if not fits(_apart(tensors, classifiers)[1], own_rest):
        tensors = converted(tensors, model)
    theirs, rest = _apart(tensors, classifiers)
    # the tensors of IsoMax+ and DisMax have the same names and shapes
    said = head_named(checkpoint.architecture or "")
    same = fits(theirs, ours) and said in ("softmax", head_of(model))
    if not fits(rest, own_rest) or not (same or training_follows):
        raise CheckpointError(_why_unfit(checkpoint, model, classifiers))
    model.load_state_dict(rest | (theirs if same else ours))
    return [] if same else list(theirs)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that make every output NaN, as those of a training that diverged.

    :param what: has them
    :raises CheckpointError: naming the tensors
    """
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{what} has NaN or infinity in {_first(bad)}; give weights of before the training "
            "diverged"
        )


def fits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names and shapes of a model's own."""
    return not any((_missing(tensors, own), _unexpected(tensors, own), _misshapen(tensors, own)))


def converted(tensors: Mapping[str, Tensor], model: TimmModel) -> dict[str, Tensor]:
    """A state dict after timm's filter for the model's architecture, which resizes position
    embeddings and renames the tensors of the original repositories; the state dict itself if timm
    has no filter or the filter cannot make anything of it."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return dict(tensors)
    try:
        return dict(adapt(dict(tensors), model))
    except Exception:  # of another architecture, which whoever loads it finds out by its names
        return dict(tensors)


def within(name: str, layers: Collection[str]) -> bool:
    """Whether a tensor belongs to one of some layers."""
    return name.rpartition(".")[0] in layers


def number_of_classes(checkpoint: Checkpoint, model: TimmModel) -> int | None:
    """For how many classes the classifier of a checkpoint is; ``None`` if it is not where the
    model has its own."""
    for layer in classifier_names(model):
        for kind in ("weight", "prototypes"):
            if (tensor := checkpoint.tensors.get(f"{layer}.{kind}")) is not None:
                return len(tensor)
    return None


def _apart(
    tensors: Mapping[str, Tensor], layers: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of some layers, and the others."""
    inside = {name: tensor for name, tensor in tensors.items() if within(name, layers)}
    return inside, {name: tensor for name, tensor in tensors.items() if name not in inside}


def _missing(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if name not in tensors and not name.endswith(_COUNT)]


def _unexpected(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return sorted((n for n in tensors if n not in own), key=lambda name: name.endswith(_COUNT))


def _misshapen(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [n for n, tensor in tensors.items() if n in own and tensor.shape != own[n].shape]


def _why_unreadable(path: Path, error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        code = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        if code := code - {"argparse.Namespace"}:
            return (
                f"{path} needs code that is not run: {_first(sorted(code))}; where it was made, "
                "save model.state_dict() instead"
            )
    if isinstance(error, AttributeError):  # of what timm takes for a dictionary
        return f"{path} holds no tensors by name"
    # torch says first how the code could be run
    text = str(cause or error).rpartition("WeightsUnpickler error:")[-1].strip()
    reason = (text or type(error).__name__).splitlines()[0].partition(". ")[0]
    return f"{path} is damaged or no checkpoint: {reason}"


def _why_unfit(checkpoint: Checkpoint, model: TimmModel, classifiers: Collection[str]) -> str:
    own, tensors = model.state_dict(), checkpoint.tensors
    name = model.pretrained_cfg.get("architecture", type(model).__name__)
    missing, unexpected = _missing(tensors, own), _unexpected(tensors, own)
    misshapen = _misshapen(tensors, own)
    theirs = [n for n in tensors if within(n, classifiers)]
    if theirs and all(within(n, classifiers) for n in (*missing, *unexpected, *misshapen)):
        kind = _head_in(theirs, checkpoint.architecture)
        if head_of(model) not in kind:
            return (
                f"the classifier in {checkpoint.path} is {' or '.join(kind)} ({_first(theirs)}), "
                f"that of the model {name} is {head_of(model)}; name the model that it is of, or "
                "train this one"
            )
        if misshapen and not missing and not unexpected:
            classes, own_classes = (len(some[misshapen[0]]) for some in (tensors, own))
            return (
                f"the classifier in {checkpoint.path} is for {classes} classes, that of the model "
                f"{name} for {own_classes}; make the model with num_classes={classes}, or train it"
            )
    said = f" (it says that it is {checkpoint.architecture})" if checkpoint.architecture else ""
    if 2 * len(missing) > len(own):
        return (
            f"{checkpoint.path} does not fit {name}{said}: it has not {_first(missing, 1)} of the "
            "model's tensors, so that it is of another architecture"
        )
    shapes = [f"{n} {list(tensors[n].shape)} for {list(own[n].shape)}" for n in misshapen]
    parts = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
    return f"{checkpoint.path} does not fit {name}{said}: " + "; ".join(
        f"{what}: {_first(names)}" for what, names in parts if names
    )


def _head_in(names: Collection[str], architecture: str | None) -> list[str]:
    """The kinds of head whose tensors these can be: the one that the file names, if it is among
    them."""
    found = {name.rpartition(".")[2] for name in names}
    kinds = [
        name for name, head in HEADS.items() if found == set(head(1, 1, device="meta").state_dict())
    ]
    said = head_named(architecture or "")
    return [said] if said in kinds else kinds or ["softmax"]


def _first(names: Collection[str], count: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return (", ".join(map(str, listed[:count])) or "nothing") + more
