"""An exported file against what it stands for: transform, PyTorch model and calibration."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm.data
import torch
from PIL import Image

from isomax.calibration import Calibration
from isomax.functional import SCORES
from isomax_adapters.onnx.judging import why_another_model, worst_layers
from isomax_adapters.runtime.decoding import from_array
from isomax_adapters.runtime.errors import InputError
from isomax_adapters.runtime.metadata import OUTPUTS
from isomax_adapters.runtime.scorer import Scorer

# share of values of a preprocessed image that may be another grey level than timm's: ONNX Runtime
# and Pillow round differently what lies half way (0.2% of values at most if bicubic, up to 10% if
# bilinear and enlarged); with the two passes of Resize in the wrong order it is 16 to 25%
PIXELS_OFF = 0.12

# how far a file of half precision may be from PyTorch: root mean square difference of the logits
# and of the scores as shares of their standard deviations, and the share of other labels
TOLERANCES = (0.05, 0.05, 0.1)
BLAMED_ON = 4  # images
STEPS = 64  # of the p-values, on either side of the threshold, and as many over all
#: these scores refuse logits that are positive
OF_DISTANCES = ("minimum_distance_score", "max_mean_logit_entropy_score")

#: of pixels, float ``[N, C, h, w]``, the logits, what is scored, and the scores
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class ExportError(InputError):
    """The model cannot be exported, or the exported file disagrees with it; nothing is written."""


def verify(
    exported: onnx.ModelProto,
    path: Path,
    model: Model,
    config: dict[str, Any],
    calibration: Calibration,
    precision: str,
    batches: Iterable[np.ndarray],
    labels: Sequence[int] | None = None,
) -> None:
    """Compare a file part by part: pixels, verdict, network.

    :param exported: what the file at ``path`` holds
    :param model: PyTorch's
    :param config: the model's preprocessing, as ``timm.data.resolve_model_data_config`` gives it
    :param precision: how near it must be: ``int8`` is judged by what it loses
    :param batches: images, uint8 ``[N, H, W, C]``, to compare the network on; random ones if empty
    :param labels: their classes, if known: the file is judged by what it loses
    :raises ExportError: if they disagree
    """
    _verify_pixels(exported, config)
    _verify_verdict(exported, calibration)
    given = iter(batches)
    first = next(given, None)
    images = random_batches(config) if first is None else chain([first], given)
    logits, score, outputs, some = _outputs(model, path, images)
    if precision == "int8" or labels is not None:
        why = why_another_model(
            *(logits, outputs["logits"], score, outputs["score"]),
            *(calibration.temperature, labels),
        )
        if why and precision == "int8":
            layers = worst_layers(exported, some)
            why += "; most is lost in " + ", ".join(f"{n} ({noise:.0f} dB)" for n, noise in layers)
    else:
        why = _why_too_far(logits, score, outputs, precision)
    if why:
        raise ExportError(
            f"the {precision} file disagrees with the model: {why}; nothing was written"
        )
    _verify_outputs(outputs, calibration)


def _verify_pixels(exported: onnx.ModelProto, config: dict[str, Any]) -> None:
    """Compare the preprocessing in the file with timm's transform."""
    transform = timm.data.create_transform(**config)
    preprocess = _part(exported, ["images"], ["pixels"])
    level = 1 / (255 * np.array(config["std"])[:, None, None])
    for images in random_batches(config):
        expected = torch.stack([transform(from_array(image)) for image in images]).numpy()
        off = np.abs(preprocess.run(None, {"images": images})[0] - expected) / level
        if not (off.max() < 2.5 and (off > 0.5).mean() <= PIXELS_OFF):  # NaN does not
            size = "x".join(map(str, images.shape[1:3]))
            raise ExportError(
                f"the file's preprocessing disagrees with timm's: of an image of {size} pixels, "
                f"{(off > 0.5).mean():.1%} of the values differ, by up to {off.max():.0f} of 255; "
                "nothing was written"
            )


def _outputs(
    model: Model,
    path: Path,
    batches: Iterable[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], list[np.ndarray]]:
    """Logits and scores of PyTorch and all outputs of the file, both from the file's own pixels,
    and the first batches.

    What a network makes of one grey level more or less is not the file's doing: the logits of a
    visformer with random weights move by half a percent, in double precision as well.
    """
    session = Scorer(path).session  # its own outputs: Scorer.run judges anew
    preprocess = _part(onnx.load(path), ["images"], ["pixels"])
    some: list[np.ndarray] = []
    logits, scores, found = [], [], []
    for images in batches:
        expected = model(preprocess.run(None, {"images": images})[0])
        logits.append(expected[0])
        scores.append(expected[2])
        found.append(session.run(list(OUTPUTS), {"images": images}))
        some += [images][: BLAMED_ON - len(some)]
    outputs = map(np.concatenate, zip(*found, strict=True))
    named = dict(zip(OUTPUTS, outputs, strict=True))
    return np.concatenate(logits), np.concatenate(scores), named, some


def _why_too_far(
    logits: np.ndarray, score: np.ndarray, outputs: dict[str, np.ndarray], precision: str
) -> str:
    """How a file differs from PyTorch; empty if it does not but for its precision."""
    expected = {"logits": logits, "score": score}
    gaps = {name: outputs[name] - value for name, value in expected.items()}
    same = float((outputs["label"] == logits.argmax(axis=1)).mean())
    if precision == "fp32":
        scales = {
            "logits": max(1.0, float(np.abs(logits).max())),
            "score": np.maximum(1.0, np.abs(score)),
        }
        off = {name: float(np.abs(gap / scales[name]).max()) for name, gap in gaps.items()}
        agrees = all(value <= 1e-3 for value in off.values())  # NaN does not
    else:
        off = {
            name: float(np.sqrt((gap**2).mean()) / expected[name].std())
            for name, gap in gaps.items()
        }
        far = zip((off["logits"], off["score"], 1 - same), TOLERANCES, strict=True)
        agrees = all(value <= limit for value, limit in far)
    if agrees:
        return ""
    return (
        f"logits by {off['logits']:.2g}, scores by {off['score']:.2g} (relative), {same:.0%} of "
        f"{len(logits)} labels the same"
    )


def _verify_verdict(exported: onnx.ModelProto, calibration: Calibration) -> None:
    """Check what the file makes of logits of all sizes, of scores at and about every step, and of
    such as are no numbers."""
    (output,) = (o for o in exported.graph.output if o.name == "logits")
    classes = output.type.tensor_type.shape.dim[1].dim_value
    generator = np.random.default_rng(0)
    scores = _telling_scores(calibration)
    spread, level = 10 ** generator.uniform(-2, 2, (2, len(scores), 1))
    logits = spread * generator.standard_normal((len(scores), classes)) - level
    if calibration.score in OF_DISTANCES:
        logits = -np.abs(logits)
    known = {"logits": logits.astype(np.float32), "score": scores}
    names = [name for name in OUTPUTS if name not in known]
    verdict = _part(exported, list(known), names)
    verdicts = _named(verdict, names, known)
    if calibration.score in SCORES:
        _refuse_wrong(_verdicts(known | verdicts, calibration))
        scored = _part(exported, ["logits"], ["score"])
        known |= _named(scored, ["score"], {"logits": known["logits"]})
        verdicts = _named(verdict, names, known)
    _verify_outputs(known | verdicts, calibration)
    known["logits"][:3, 0] = np.nan, np.inf, -np.inf
    found = _named(verdict, ["p_value", "is_ood"], {n: rows[:3] for n, rows in known.items()})
    if not (found["is_ood"].all() and (found["p_value"] <= 1 / (calibration.samples + 1)).all()):
        raise ExportError("the file accepts logits that are no numbers; nothing was written")


def _named(
    session: onnxruntime.InferenceSession, names: list[str], given: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return dict(zip(names, session.run(names, given), strict=True))


def _verify_outputs(outputs: dict[str, np.ndarray], calibration: Calibration) -> None:
    """Check that the other outputs follow from the logits, whatever the precision of those."""
    logits = torch.from_numpy(outputs["logits"]).double()
    probabilities = (logits / calibration.temperature).softmax(dim=1).numpy()
    rounding = np.finfo(np.float32).eps * logits.abs().amax(dim=1).numpy() / calibration.temperature
    of_logits = calibration.score in SCORES
    score = calibration.score_of(logits).numpy() if of_logits else outputs["score"]
    chosen = np.take_along_axis(outputs["logits"], outputs["label"][:, None], axis=1)[:, 0]
    _refuse_wrong(
        {
            "label": chosen == outputs["logits"].max(axis=1),
            "probabilities": np.abs(outputs["probabilities"] - probabilities)
            <= 1e-4 + rounding[:, None],
            "confidence": outputs["confidence"] == outputs["probabilities"].max(axis=1),
            "score": np.abs(outputs["score"] - score) <= 1e-4 * np.maximum(1, np.abs(score)),
        }
        | _verdicts(outputs, calibration)
    )


def _verdicts(outputs: dict[str, np.ndarray], calibration: Calibration) -> dict[str, np.ndarray]:
    """Which p-values and verdicts follow from the scores."""
    scores = torch.from_numpy(outputs["score"])
    return {
        "p_value": outputs["p_value"] == calibration.p_values(scores).numpy(),
        "is_ood": outputs["is_ood"] == calibration.rejects(scores).numpy(),
    }


def _refuse_wrong(right: dict[str, np.ndarray]) -> None:
    wrong = [name for name, holds in right.items() if not holds.all()]
    if wrong:
        raise ExportError(
            f"the file disagrees with the model's calibration: {', '.join(wrong)} do not follow "
            "from the logits; nothing was written"
        )


def _telling_scores(calibration: Calibration) -> np.ndarray:
    """Scores at and next to the steps of the p-values: all about the threshold, some elsewhere."""
    steps = np.asarray(calibration.scores, dtype=np.float32)
    threshold = int(np.searchsorted(steps, np.float32(calibration.threshold)))
    near = np.arange(threshold - STEPS, threshold + STEPS)
    anywhere = np.linspace(0, len(steps) - 1, STEPS).astype(int)
    chosen = steps[np.unique(np.clip(np.concatenate([near, anywhere]), 0, len(steps) - 1))]
    chosen = np.concatenate([chosen, chosen + np.float32(calibration.tolerance)])
    sides = [np.nextafter(chosen, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([chosen, *sides])


def _part(
    model: onnx.ModelProto, inputs: list[str], outputs: list[str]
) -> onnxruntime.InferenceSession:
    typed = onnx.shape_inference.infer_shapes(model)  # a merge of before onnx 1.21 has no types
    part = onnx.utils.Extractor(typed).extract_model(inputs, outputs)
    return onnxruntime.InferenceSession(part.SerializeToString())


def random_batches(config: dict[str, Any]) -> Iterator[np.ndarray]:
    """Images of several sizes, uint8 ``[4, H, W, C]``."""
    generator = np.random.default_rng(0)
    channels, height, width = config["input_size"]
    # the last one shrinks, and its height by more than its width: see _VERTICAL_FIRST
    sizes = ((height, width), (height + 13, 2 * width + 7), (5 * height + 1, 2 * width + 3))
    for size in sizes:
        yield np.stack([_smooth_image(generator, size, channels) for _ in range(4)])


def _smooth_image(
    generator: np.random.Generator, size: tuple[int, int], channels: int
) -> np.ndarray:
    # like a photograph: large shapes and some grain
    coarse = from_array(generator.integers(0, 256, (5, 5, channels), dtype=np.uint8))
    image = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), dtype=int)
    grain = generator.integers(-8, 9, (*size, channels))
    return np.clip(image.reshape(grain.shape) + grain, 0, 255).astype(np.uint8)
