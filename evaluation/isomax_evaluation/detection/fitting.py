"""One pass over the training images fits every detector of what a model makes of them; those of the
images themselves have one each."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_ood.api import Detector, FeatureMapsDetector, LogitsDetector

from isomax_adapters.pytorch_ood import Parts
from isomax_adapters.pytorch_ood.entries import wiring_of
from isomax_evaluation.detection.draws import Draws
from isomax_evaluation.detection.large import fit_outputs
from isomax_evaluation.extraction.feature_maps import MapsOnDisk
from isomax_evaluation.extraction.one_pass import Known, Loader, nothing, one_pass
from isomax_evaluation.extraction.store import Keeper, OutputsInMemory
from isomax_evaluation.output.errors import one_line

_SCRATCH = "feature-maps-"


def fit(
    parts: Parts,
    detectors: Mapping[str, Detector],
    loader: Loader,
    scratch: Path | None = None,
    advance: Callable[[int], None] = nothing,
    keeper: Keeper | None = None,
    seed: int | None = None,
) -> dict[str, str]:
    """Fit all detectors that need it.

    One pass over the training images is for all of logits and pooled features, which go into
    ``keeper``, and of feature maps, which go into a temporary file. If the keeper has the outputs
    already, there is none unless maps are asked for. Each detector that is fitted on images has a
    pass of its own on top. The scores are those of ``detector.fit(loader)``.

    :param parts: a model in evaluation mode
    :param detectors: by name
    :param loader: yields (images, labels); images with labels below 0 are left out
    :param scratch: folder for the temporary file; the system's own if not given
    :param advance: called with the number of images done since the last call
    :param keeper: of the outputs on these images; they stay in memory if not given
    :param seed: of each detector's own random numbers; those of the process if not given
    :return: the detectors that could not be fitted, with the reason
    """
    unfitted = {name: detector for name, detector in detectors.items() if detector.requires_fit}
    if not unfitted:
        return {}
    keeper = OutputsInMemory() if keeper is None else keeper
    on_maps = {n: d for n, d in unfitted.items() if isinstance(d, FeatureMapsDetector)}
    on_outputs = {n: d for n, d in unfitted.items() if n not in on_maps and _takes_outputs(d)}
    on_images = {n: d for n, d in unfitted.items() if n not in on_maps and n not in on_outputs}
    failed: dict[str, str | None] = {}

    def run(name: str, function: Callable[[], Any]) -> None:
        with Draws(seed)():
            failed[name] = attempt(function)

    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=scratch) as folder:
        maps = MapsOnDisk(Path(folder) / "maps")
        if on_maps or keeper.read() is None:
            for batch in one_pass(parts, loader, keeper, bool(on_maps), True, advance):
                if batch.maps is not None:
                    maps.append(batch.maps)
            advance = nothing  # all images are done already
        for name, detector in on_images.items():
            run(name, partial(detector.fit, Known(parts, loader, advance)))
            advance = nothing
        training = keeper.read()
        assert training is not None
        for name, detector in on_outputs.items():
            run(name, partial(fit_outputs, detector, training))
        for name, detector in on_maps.items():
            fit_maps = wiring_of(detector).fit_maps
            run(name, partial(fit_maps, detector, maps.array(), training.labels))
    return {name: reason for name, reason in failed.items() if reason is not None}


def doubt_of_fit(name: str, detector: Detector) -> str | None:
    """Why the scores of a fitted detector are worth nothing, if they are."""
    reason = wiring_of(detector).doubt(detector)
    return reason and f"{name}: {reason}"


def remove_scratch(scratch: Path) -> None:
    """Remove the temporary files that killed calls of :func:`fit` have left behind."""
    for folder in scratch.glob(f"{_SCRATCH}*"):
        shutil.rmtree(folder)


def attempt(function: Callable[[], Any]) -> str | None:
    """Run something of a detector's; the reason why it failed, if it did."""
    try:
        function()
    except Exception as error:  # detectors raise whatever they please; the table names it
        return one_line(error)
    return None


def _takes_outputs(detector: Detector) -> bool:
    # MahalanobisODIN is fitted on features, and scores images
    return isinstance(detector, LogitsDetector) or hasattr(detector, "fit_features")
