"""A tiny model with the real graph around it, made without torch: nearest of three colours.

``python make_model.py FILE``: the environment of the runtime has no onnx, so it is made elsewhere.
"""

import sys

import onnx
from onnx import parser

from isomax_adapters.onnx.graph import assemble

SIZE = 8
CLASSES = ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
THRESHOLD, TEMPERATURE = 0.9, 0.25
CURVE = [[0.01, 1.05], [0.05, 0.9], [0.5, 0.2]]

NETWORK = f"""
<ir_version: 10, opset_import: ["": 18]>
network (float[N, 3, {SIZE}, {SIZE}] pixels) => (float[N, 3] logits) {{
    colours = Constant<value=float[1, 3, 3] {{PROTOTYPES}}>()
    axes = Constant<value_ints=[2, 3]>()
    one = Constant<value_ints=[1]>()
    two = Constant<value_ints=[2]>()
    mean = ReduceMean<keepdims=0>(pixels, axes)
    features = Unsqueeze(mean, one)
    differences = Sub(features, colours)
    distances = ReduceL2<keepdims=0>(differences, two)
    logits = Neg(distances)
}}
"""


def prototypes() -> list[list[float]]:
    """Pure red, green and blue after normalisation."""
    return [
        [
            ((255 if channel == label else 0) / 255 - MEAN[channel]) / STD[channel]
            for channel in range(3)
        ]
        for label in range(3)
    ]


def build(score: str = "entropic_score") -> onnx.ModelProto:
    numbers = ", ".join(repr(float(v)) for row in prototypes() for v in row)
    network = parser.parse_model(NETWORK.replace("{PROTOTYPES}", "{" + numbers + "}"))
    config = {
        "input_size": (3, SIZE, SIZE),
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
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
