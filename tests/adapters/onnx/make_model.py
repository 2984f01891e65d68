"""A tiny model with the real graph around it, made without torch: nearest of three colours.

``python make_model.py FILE``: the environment of the runtime has no onnx, so it is made elsewhere.
"""

import sys
from collections.abc import Sequence

import onnx
from onnx import parser

from isomax_adapters.onnx.graph import assemble

SIZE = 8
CLASSES = ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5)
TEMPERATURE = 0.25
# 99 of them: four above 1, the fifth, which is the threshold for 5%, at 0.9
SCORES = [round(0.009 * place, 3) for place in range(6, 101)] + [1.02, 1.03, 1.04, 1.05]

NETWORK = """
<ir_version: 10, opset_import: ["": 18]>
network (float[N, CHANNELS, SIZE, SIZE] pixels) => (float[N, 3] logits) {
    colours = Constant<value=float[1, 3, CHANNELS] {PROTOTYPES}>()
    axes = Constant<value_ints=[2, 3]>()
    one = Constant<value_ints=[1]>()
    two = Constant<value_ints=[2]>()
    mean = ReduceMean<keepdims=0>(pixels, axes)
    features = Unsqueeze(mean, one)
    differences = Sub(features, colours)
    distances = ReduceL2<keepdims=0>(differences, two)
    logits = Neg(distances)
}
"""


def prototypes(channels: int) -> list[list[float]]:
    """Pure red, green and blue after normalisation; what lies beyond is not there."""
    return [
        [
            ((255 if channel == label else 0) / 255 - MEAN[channel]) / STD[channel]
            for channel in range(channels)
        ]
        for label in range(3)
    ]


def build(
    score: str = "entropic_score",
    channels: int = 3,
    scores: Sequence[float] = SCORES,
    tolerance: float = 0.0,
) -> onnx.ModelProto:
    numbers = ", ".join(repr(float(v)) for row in prototypes(channels) for v in row)
    text = NETWORK.replace("PROTOTYPES", numbers).replace("CHANNELS", str(channels))
    network = parser.parse_model(text.replace("SIZE", str(SIZE)))
    config = {
        "input_size": (channels, SIZE, SIZE),
        "interpolation": "bicubic",
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    threshold = sorted(scores)[
        (len(scores) + 1) * 19 // 20 - 1
    ]  # for 5%, of 19, 39, 59, ... scores
    metadata = {
        "format": 1,
        "class_names": CLASSES,
        "score": score,
        "temperature": TEMPERATURE,
        "alpha": 0.05,
        "threshold": threshold,
        "samples": len(scores),
        "scores": sorted(scores),
        "tolerance": tolerance,
        "preprocessing": config,
    }
    return assemble(network, config, metadata)


if __name__ == "__main__":
    onnx.save(build(), sys.argv[1])
