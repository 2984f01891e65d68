"""Models that exist: opened, and made to speak of the classes of the ID data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_ood.api import Detector
from timm.models import get_model_input_config
from torch import nn

from isomax_adapters.pytorch_ood import Parts, load_detector, read_detector
from isomax_adapters.runtime.decoding import CHANNELS, RGB, Decoding
from isomax_adapters.timm import load_calibration
from isomax_adapters.timm.checkpoints import check_finite
from isomax_adapters.timm.classes import match_classes
from isomax_adapters.timm.sources import model_folder_of, open_model
from isomax_evaluation.data.images import Images
from isomax_evaluation.data.preprocessing import preprocessing_of
from isomax_evaluation.detection.class_order import places_by_images
from isomax_evaluation.detection.models import Model
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Progress

Source = str | Path | nn.Module | Parts


@dataclass(frozen=True)
class GivenModel:
    """A model to be opened."""

    name: str
    seed: int  #: which of the sources of this name
    source: str | nn.Module | Parts

    @property
    def in_memory(self) -> bool:
        """Whether it is there already, rather than somewhere to be had from."""
        return not isinstance(self.source, str)

    @property
    def described(self) -> str:
        """The source in words."""
        if isinstance(self.source, str):
            return self.source
        return type(getattr(self.source, "model", self.source)).__name__


def open_given(
    given: GivenModel,
    images: Images,
    preprocessing: Mapping[str, Any],
    decoding: Decoding,
    tensors: bool,
    device: Any,
    progress: Progress,
    class_names: Sequence[str] | None = None,
    in_given_order: bool = False,
) -> Model:
    """Open a model and match its classes to those of the ID data.

    The logits of its other classes are dropped. Which logit is of which class of a folder, a model
    without names does not say: the images do, see
    :func:`~isomax_evaluation.detection.class_order.places_by_images`. Data sets that are no files
    number their classes themselves.

    :param images: of the ID data
    :param preprocessing: what is to be other than the model's own, as
        :func:`~isomax_evaluation.data.preprocessing.preprocessing_of` takes it; a model that is
        built for one size keeps that
    :param decoding: of a model that was trained without options of its own; channels are its own
    :param tensors: whether the images come as finished tensors
    :param class_names: of a model that has none, in the order of its logits
    :param in_given_order: whether that of the classes of the ID data was given, and is the model's
    :raises InputError: if it cannot be had, or does not know the classes
    """
    calibration = None
    detector: Detector | None = None
    try:
        if isinstance(given.source, str):
            network: Any = open_model(given.source, preprocessing["img_size"])
            folder = model_folder_of(given.source)
            if folder is not None:
                calibration = load_calibration(folder)
            parts = Parts(network)
            if folder is not None and read_detector(folder) is not None:
                detector = load_detector(folder, parts)
        else:
            parts = given.source if isinstance(given.source, Parts) else Parts(given.source)
            check_finite(parts.model.state_dict(), given.name)
        network = parts.model
        decoding = decoding.with_options(getattr(network, "decoding", RGB).options)
        if parts.num_classes < 1:
            raise InputError(f"{given.name} has no classes")
        classes = match_classes(
            network, parts.num_classes, given.name, images.class_names, class_names
        )
    except InputError as error:
        raise InputError(f"{given.name}: {error}") from error
    if not tensors and not hasattr(network, "pretrained_cfg"):
        raise InputError(
            f"{given.name} is no timm model, so how its images are prepared is not known; give "
            "data sets whose transform makes the tensors it takes"
        )
    network.to(device).eval()
    config = None
    if not tensors:
        fixed = get_model_input_config(network)["fixed_input_size"]
        config = preprocessing_of(
            network, {**preprocessing, **({"img_size": None} if fixed else {})}
        )
        if config["input_size"][0] not in CHANNELS:
            raise InputError(
                f"{given.name} takes {config['input_size'][0]} channels; expected 1, 3 or 4"
            )
        decoding = replace(decoding, channels=config["input_size"][0])
    names = images.class_names
    model = Model(given.name, given.seed, parts, names, config, decoding, calibration, detector)
    if classes is None and in_given_order:
        classes = list(range(parts.num_classes))
    if classes is None:
        classes = places_by_images(
            lambda batch: network(batch.to(device)).argmax(dim=1),
            images.decoded(model.decoding),
            model.transform,
            given.name,
            progress,
        )
    if classes != list(range(parts.num_classes)):
        parts.keep_classes(classes)
        if detector is not None or len(classes) < parts.num_classes:
            # they are of all classes together, in their order
            model = replace(model, calibration=None, detector=None)
    return model
