"""What makes a trained model no good, of what it gave for images that it was not trained on."""

from collections.abc import Sequence

from torch import Tensor, nn

from isomax import doubts
from isomax.calibration import Calibration
from isomax.functional import SCORES
from isomax_adapters.timm.attaching import head_modules


def doubts_of(
    model: nn.Module,
    calibration: Calibration | None,
    logits: Tensor,
    labels: Tensor,
    losses: Sequence[float] = (),
    scores: Tensor | None = None,
) -> list[str]:
    r"""Each with the way out; none if nothing is known to be wrong.

    :param calibration: its threshold, if it has one
    :param logits: of images that it was not trained on, :math:`N \times C`
    :param labels: their classes, :math:`N`
    :param scores: that the threshold is for, :math:`N`, if not those of the logits
    :param losses: mean training loss of each epoch, if it has been trained here
    """
    classes = logits.shape[1]
    found = [doubts.of_accuracy(logits.argmax(dim=1), labels), doubts.of_loss(losses, classes)]
    if calibration is not None:
        scores = calibration.score_of(logits) if scores is None else scores
        found.append(doubts.of_scores(scores, classes))
    return [*filter(None, found), *doubts_without_images(model, calibration, classes)]


def doubt_of_samples(samples: int, alpha: float) -> str:
    """Whether a threshold has too few images to be set on; with the way out."""
    few = doubts.of_calibration(samples, alpha)
    return few and f"{few} (isomax train --val-share, isomax calibrate --calibration)"


def doubts_without_images(
    model: nn.Module, calibration: Calibration | None, classes: int
) -> list[str]:
    """The same of a model's heads and of its threshold, as they are."""
    heads = head_modules(model)
    found = [doubts.of_distance_scale(head) for head in heads]
    if calibration is not None:
        found.append(doubt_of_samples(calibration.samples, calibration.alpha))
        found.append(doubts.of_ties(calibration.scores, calibration.alpha, calibration.tolerance))
    if calibration is not None and calibration.score in SCORES:
        largest = doubts.largest_score(calibration.score, classes, heads[0] if heads else None)
        found.append(doubts.of_threshold(calibration.threshold, largest))
    return [text for text in found if text]
