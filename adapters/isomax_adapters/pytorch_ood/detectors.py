"""Every pytorch-ood detector that can work on a model, built by name and wired to its parts."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from pytorch_ood.api import Detector
from torch import nn

from isomax_adapters.pytorch_ood.entries import WIRINGS, wiring_of
from isomax_adapters.pytorch_ood.parts import Parts
from isomax_adapters.runtime.errors import InputError

NAMES = tuple(WIRINGS)
"""All names that :func:`detectors_for` knows."""

#: what others call some of them, OpenOOD above all, in small letters
_ELSEWHERE = {
    "ebo": ("EnergyBased",),
    "energy": ("EnergyBased",),
    "es": ("EntropicScore",),
    "klm": ("KLMatching",),
    "maha": ("Mahalanobis",),
    "mds": ("Mahalanobis", "MinimumDistanceScore"),
    "mdsensemble": ("MultiMahalanobis",),
    "mls": ("MaxLogit",),
    "mmles": ("MaxMeanLogitEntropyScore",),
    "msp": ("MaxSoftmax",),
    "rmds": ("RMD",),
    "tempscale": ("TemperatureScaling",),
}


def detectors_for(
    model: nn.Module | Parts, names: Iterable[str] | None = None
) -> dict[str, Detector]:
    """Build detectors for a timm model, not yet fitted.

    Detectors that cannot work on the model are left out; :func:`why_not` says why. How each is
    wired, and where that is written, :func:`wiring_notes` says.

    :param model: a timm model with a linear classifier or one of our heads; put it in evaluation
        mode first
    :param names: which detectors; all of :data:`NAMES` if not given
    :return: the detectors by name, in the order of the names
    :raises InputError: if a name is unknown, or the model has no classifier
    """
    parts = model if isinstance(model, Parts) else Parts(model)
    reasons = why_not(parts, names)
    return {name: WIRINGS[name].on(parts) for name in _known(names) if name not in reasons}


def why_not(model: nn.Module | Parts, names: Iterable[str] | None = None) -> dict[str, str]:
    """The detectors that cannot work on a model, with the reason.

    :raises InputError: if a name is unknown, or the model has no classifier
    """
    parts = model if isinstance(model, Parts) else Parts(model)
    reasons = {name: WIRINGS[name].obstacle(parts) for name in _known(names)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


@dataclass(frozen=True)
class WiringNote:
    """How a detector is wired."""

    detector: str  #: its name
    how: str  #: what it is given, and its settings
    source: str  #: where that is written: the paper, or the code of its authors
    differs: str  #: in what it is not the paper's; empty if in nothing
    held_out: bool  #: whether the paper fits it on ID images that the model was not trained on


def wiring_notes(names: Iterable[str] | None = None) -> list[WiringNote]:
    """How detectors are wired, and where that is written; ``pandas.DataFrame`` takes the list.

    :param names: which detectors; all of :data:`NAMES` if not given
    :raises InputError: if a name is unknown
    """
    chosen = [(name, WIRINGS[name]) for name in _known(names)]
    return [WiringNote(name, w.how, w.source, w.differs, w.held_out) for name, w in chosen]


def check_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Refuse names of detectors that there are not.

    :param others: names that are allowed beside :data:`NAMES`
    :raises InputError: naming what was meant, if that can be told, and all that there are
    """
    names = [names] if isinstance(names, str) else names
    known = [*others, *NAMES]
    if unknown := [name for name in names if name not in known]:
        asked = [f"{name}{_question(name)}" for name in unknown]
        raise InputError(f"unknown detector {', '.join(asked)}; choose from {', '.join(known)}")


def _question(name: str) -> str:
    """What was meant by a name that there is not; empty if nothing is like it."""
    spelt = name.lower().replace("++", "pp").replace("+", "plus")
    plain = "".join(c for c in spelt if c.isalnum())
    folded = {known.lower(): known for known in NAMES}
    meant = _ELSEWHERE.get(plain) or [folded[one] for one in get_close_matches(plain, folded, n=1)]
    return f" (is it {' or '.join(meant)}?)" if meant else ""


def _known(names: Iterable[str] | None) -> list[str]:
    chosen = list(NAMES if names is None else [names] if isinstance(names, str) else names)
    check_names(chosen)
    return chosen


def with_bank(detector: Any, most: int) -> Any:
    """A fitted detector that compares with at most so many of its samples, evenly spaced: nearest
    neighbours' and NNGuide's; others are as they are.

    :raises InputError: if there are fewer than its nearest neighbours
    """
    wiring = wiring_of(detector)
    samples = wiring.state(detector).get(wiring.bank)
    if samples is None or len(samples) <= most:
        return detector
    if most < detector.k:
        raise InputError(f"the bank is {most}; expected at least its {detector.k} neighbours")
    chosen = np.linspace(0, len(samples) - 1, most).round().astype(int)
    smaller = copy.copy(detector)
    wiring.restore(smaller, {wiring.bank: samples[chosen]})
    return smaller
