"""A calibration on the scores that an exported file computes, and how far scores may differ.

What a runtime gives differs in the last bits by version, processor, number of threads and of images
at a time. Where scores tie, as those of a confident network do, these bits would decide. So the
scores that calibrate a file are made by its own graph, of the same logits or features that PyTorch
made the folder's of; and scores that are no further apart than runtimes were seen to be are ties.
"""

from collections.abc import Iterable

import numpy as np
import torch

from isomax.calibration import Calibration
from isomax_adapters.onnx.images import Labelled
from isomax_adapters.onnx.network import Scored
from isomax_adapters.onnx.running import OWN, WAYS

SAFETY = 2  # times the largest difference that was seen
MOST = 1000  # calibration images that differences are looked for on
ONE_BY_ONE = 256  # the same, where images go one by one


def calibrated_on(
    images: Iterable[np.ndarray], held_out: Labelled, network: Scored, folders: Calibration
) -> Calibration:
    """The calibration of a network that is another one than the folder's.

    :param images: of ``held_out``, as the network gets them, batches of one
    """
    rows = [network.run(OWN, image) for image in images]
    logits, given = (torch.from_numpy(np.concatenate(part)) for part in zip(*rows, strict=True))
    scores = torch.from_numpy(network.scores(OWN, given.numpy()))
    features = given.flatten(1) if network.kind == "features" else None
    labels = torch.tensor(held_out.labels)
    return Calibration.fit(logits, labels, folders.score, folders.alpha, scores, features)


def with_own_scores(
    calibration: Calibration,
    network: Scored,
    pixels: np.ndarray,
    expected: tuple[np.ndarray, np.ndarray] | None,
) -> Calibration:
    """A calibration with the scores that the file computes, if what these are made of is kept, and
    with the tolerance that was found.

    :param pixels: of some images, float ``[N, C, h, w]``
    :param expected: what PyTorch makes of them: what is scored, and the scores; ``None`` if it is
        another model than the file's
    """
    kept = calibration.outputs.get(network.kind)
    given = None if kept is None else kept.numpy()
    scores = np.array(calibration.scores, np.float32)
    apart = [0.0]
    if given is not None:
        scores = network.scores(OWN, given)
        if "scores" in calibration.outputs:  # PyTorch's
            apart.append(_largest(scores - calibration.outputs["scores"].numpy()))
    if expected is None:
        _, found = network.run(OWN, pixels)
        expected = found, network.scores(OWN, found)
    apart.append(_apart(network, pixels, expected, given, scores, float(np.abs(scores).max())))
    return calibration.with_scores(torch.from_numpy(scores), SAFETY * max(apart))


def _apart(
    network: Scored,
    pixels: np.ndarray,
    expected: tuple[np.ndarray, np.ndarray],
    given: np.ndarray | None,
    scores: np.ndarray,
    scale: float,
) -> float:
    """The largest difference of scores over all ways to run a file.

    Of images that may be unlike the calibration images, with scores far beyond theirs, it is
    relative to their score. Of the calibration images it is what the scorer makes of the same
    logits or features, and of such as differ from them by as much as those of the other images did.

    :param given: what was scored of the calibration images, if it is kept
    :param scale: the largest of the calibration scores
    """
    some = slice(None, None, max(1, len(scores) // MOST))
    apart, errors = [0.0], []
    lengths = _rows(expected[0]).clip(min=np.finfo(np.float32).tiny)
    for way in WAYS:
        _, found = network.run(way, pixels)
        beyond = np.maximum(1, np.abs(expected[1]) / max(scale, np.finfo(np.float32).tiny))
        apart.append(_largest((network.scores(way, found) - expected[1]) / beyond))
        errors.append((found - expected[0]).reshape(len(found), -1) / lengths)
        if given is not None:
            few = some if way.together > 1 else slice(None, None, max(1, len(scores) // ONE_BY_ONE))
            apart.append(_largest(network.scores(way, given[few]) - scores[few]))
    if given is not None:
        chosen = given[some]
        error = np.resize(np.concatenate(errors), (len(chosen), chosen[0].size))
        moved = chosen + (_rows(chosen) * error).reshape(chosen.shape).astype(np.float32)
        apart.append(_largest(network.scores(OWN, moved) - scores[some]))
    return max(apart)


def _rows(values: np.ndarray) -> np.ndarray:
    """Length of each row, ``[N, 1]``."""
    return np.linalg.norm(values.reshape(len(values), -1), axis=1, keepdims=True)


def _largest(differences: np.ndarray) -> float:
    """NaN left out, which the file is verified for."""
    return float(np.fmax.reduce(np.abs(differences), axis=None, initial=0.0))
