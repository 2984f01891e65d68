"""A tiny model with the real graph around it, made without torch: nearest of three colours.

``python make_model.py FILE``: the environment of the runtime has no onnx, so it is made elsewhere.
"""

import sys

import onnx
from onnx import parser

from isomax_adapters.onnx.graph import assemble

SIZE = 8
CLASSES = ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5)
THRESHOLD, TEMPERATURE = 0.9, 0.25
CURVE = [[0.01, 1.05], [0.05, 0.9], [0.5, 0.2]]

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


def build(score: str = "entropic_score", channels: int = 3) -> onnx.ModelProto:
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
    metadata = {
        "format": 1,
        "class_names": CLASSES,
        "score": score,
        "temperature": TEMPERATURE,
        "alpha": 0.05,
        "threshold": THRESHOLD,
        "samples": 99,
        "curve": CURVE,
        "preprocessing": config,
    }
    return assemble(network, config, score, TEMPERATURE, THRESHOLD, metadata)


if __name__ == "__main__":
    onnx.save(build(), sys.argv[1])
