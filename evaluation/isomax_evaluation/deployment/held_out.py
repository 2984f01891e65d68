"""Which images calibrate: those that neither model nor detector has seen."""

from dataclasses import dataclass

from isomax.calibration import RejectionThreshold
from isomax_adapters.timm.sources import model_folder_of
from isomax_evaluation import data
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError

SHARE = 0.1  # of the training images, where no others are there to calibrate on


@dataclass(frozen=True)
class HeldOut:
    """What a detector is fitted on, and what it is calibrated on."""

    training: Images
    calibration: Images
    guarantee: str  #: as :class:`isomax.calibration.Calibration` has it
    note: str = ""  #: what whoever relies on it should read


def hold_out(
    train: Images,
    validation: Images | None,
    source: str | None,
    alpha: float,
    given: Images | None = None,
) -> HeldOut:
    """Images to fit on, and images that nothing has seen.

    These are, in this order: those that are given; those that ``isomax train`` has held out to
    calibrate on; the validation set that lies beside a test set. Where there are none of these, a
    share of the training images is kept from the detector, and nobody can know whether the model
    was trained on them.

    :param train: ID images to fit on
    :param validation: the data set's own
    :param source: where the model is from; ``None`` if it was given in memory
    :param alpha: false-alarm rate of the threshold
    :param given: images of the same classes that the model has not seen
    :raises InputError: if there are too few
    """
    needed = RejectionThreshold(alpha).samples_needed
    recorded = None if source is None else _recorded(source, train)
    if given is not None:
        found = HeldOut(train, given, "established")
    elif recorded is not None:
        found = HeldOut(*recorded, "established")
    elif validation is not None:
        found = HeldOut(train, validation, "established")
    else:
        divided = data.divide(train, None, needed, SHARE, seed=0)
        found = HeldOut(
            divided.training,
            divided.calibration,
            "unknown",
            f"{len(divided.calibration)} training images were kept from the detector to calibrate "
            "on; if the model was trained on them, more than alpha of fresh images will be "
            "rejected: the guarantee is unknown. Give images that it has not seen, in val beside "
            "test, or with --calibration FOLDER",
        )
    if len(found.calibration) < needed:
        raise InputError(
            f"the threshold takes {needed} images that the model has not seen, and there are "
            f"{len(found.calibration)}; give more, or choose a larger alpha"
        )
    return found


def _recorded(source: str, images: Images) -> tuple[Images, Images] | None:
    """What a training has recorded of these images: those that it trained on, and those that it
    held out to calibrate on; ``None`` if it has recorded nothing, or other images."""
    folder = model_folder_of(source)
    if folder is None:
        return None
    found = data.recorded_parts(folder.parent / "splits.csv", images)
    held = [at for at, part in enumerate(found) if part == "calibration"]
    trained = [at for at, part in enumerate(found) if part == "train"]
    return (images.take(trained), images.take(held)) if held and trained else None
