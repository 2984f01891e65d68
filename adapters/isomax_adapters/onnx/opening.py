"""A model folder opened for export: model, calibration, and the detector that this is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from pytorch_ood.api import Detector
from torch import Tensor

from isomax.calibration import Calibration
from isomax.functional import SCORES
from isomax_adapters.onnx.images import ImageSource, decoded
from isomax_adapters.onnx.verifying import ExportError
from isomax_adapters.pytorch_ood import Parts, kind_of, load_detector, read_detector
from isomax_adapters.runtime.decoding import Decoding
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.timm import load_calibration, load_model
from isomax_adapters.timm.classes import checked_names


@dataclass(frozen=True)
class Opened:
    """What a model folder holds."""

    model: Any  #: a timm model: more attributes than nn.Module has
    parts: Parts
    calibration: Calibration
    detector: Any  #: the fitted detector that is calibrated; ``None`` if the score is of the logits
    config: dict[str, Any]  #: preprocessing, as ``timm.data.resolve_model_data_config`` gives it
    decoding: Decoding
    class_names: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Of an image as the network gets it."""
        channels, height, width = self.config["input_size"]
        return channels, height, width

    def decode(self, source: ImageSource) -> np.ndarray:
        """An image as the model takes it, uint8 ``[H, W, C]``."""
        return decoded(source, self.decoding)

    def outputs(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What PyTorch makes of images: logits, what is scored, and the scores.

        :param pixels: as the network gets them, float ``[N, C, h, w]``
        """
        x = torch.from_numpy(pixels)
        with torch.no_grad():
            logits, given, scores = self._scored(x)
        return logits.numpy(), given.numpy(), scores.float().numpy()

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = None if self.detector is None else kind_of(self.detector)
        if kind in (None, "logits"):
            logits: Tensor = self.model(x)
            if self.detector is None:
                return logits, logits, self.calibration.score_of(logits)
            return logits, logits, self.detector.predict_logits(logits)
        if kind == "features":
            logits, features = self.parts.logits_and_features(x)
            return logits, features, self.detector.predict_features(features)
        logits, _, maps = self.parts.logits_features_and_maps(x)
        return logits, maps, self.detector.predict_feature_maps(maps)


def open_folder(folder: Path, precision: str, class_names: Sequence[str] | None = None) -> Opened:
    """
    :param class_names: of a folder that has none; the numbers of the logits if not given
    :raises InputError: if the folder is no calibrated model folder, or names are not one for each
        class
    :raises ExportError: if its detector cannot go with this precision
    """
    model: Any = load_model(folder)
    calibration = load_calibration(folder)
    if calibration is None:
        raise InputError(
            f"{folder} is not calibrated, so there is no threshold; calibrate it with "
            "isomax.calibration.Calibration.fit and isomax_adapters.timm.save_calibration"
        )
    classes = model.num_classes
    names = model.pretrained_cfg.get("label_names") or checked_names(
        range(classes) if class_names is None else class_names, classes
    )
    parts = Parts(model)
    return Opened(
        model,
        parts,
        calibration,
        _detector_of(folder, parts, calibration, precision),
        timm.data.resolve_model_data_config(model),
        model.decoding,
        tuple(map(str, names)),
    )


def _detector_of(
    folder: Path, parts: Parts, calibration: Calibration, precision: str
) -> Detector | None:
    """The fitted detector of a model folder whose threshold is for its scores; ``None`` if it is
    for scores of the logits.

    :raises InputError: if there is none for the threshold
    :raises ExportError: if it cannot go with this precision
    """
    if calibration.score in SCORES:
        return None
    detector = load_detector(folder, parts)
    saved = read_detector(folder)
    assert saved is not None
    if saved.name != calibration.score:
        raise InputError(
            f"the threshold of {folder} is for {calibration.score}, and its detector is "
            f"{saved.name}; calibrate it again"
        )
    if precision != "fp32" and kind_of(detector) == "feature_maps":
        raise ExportError(
            f"{saved.name} scores feature maps, which a reduced backbone gives otherwise; export "
            f"it as fp32, or calibrate with {saved.name.removesuffix('-maps')}, of pooled features"
        )
    return detector
