"""The README's picture: what a softmax classifier says of photographs, and what IsoMax+ says.

``python picture.py SOFTMAX.onnx ISOMAX.onnx NAMES OUTPUT.png``: two files that were exported from
the same backbone trained on the same images; ``NAMES`` has a line for each class, its name in the
files and what people call it. The photographs are scikit-image's, all in the public domain or CC0.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from skimage import data

from isomax_adapters.onnx.runtime import Scorer

PHOTOGRAPHS = ("coffee", "chelsea", "astronaut", "rocket", "retina", "hubble_deep_field")


def main() -> int:
    softmax, isomax = Scorer(sys.argv[1]), Scorer(sys.argv[2])
    lines = Path(sys.argv[3]).read_text(encoding="utf-8").splitlines()
    called = {name: words.split(",")[0] for name, words in (line.split("\t") for line in lines)}
    images = [getattr(data, name)() for name in PHOTOGRAPHS]
    figure = Figure(figsize=(2.1 * len(images), 3.1), layout="constrained")
    axes = figure.subplots(1, len(images))
    for axis, image in zip(axes, images, strict=True):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = np.ascontiguousarray(image[top : top + side, left : left + side, :3])
        logits = softmax.run(square[None])["logits"][0].astype(float)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        label = called[softmax.class_names[int(probabilities.argmax())]]
        (ours,) = isomax.score(square)
        verdict = "unknown" if ours.is_ood else called[ours.class_name]
        axis.imshow(square)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"softmax: {label}\n{100 * probabilities.max():.0f}% sure", fontsize=10)
        colour = "#0072b2" if ours.is_ood else "#007a53"
        axis.set_xlabel(
            f"isomax: {verdict}\np = {ours.p_value:.3f}", fontsize=10, color=colour, weight="bold"
        )
    figure.savefig(sys.argv[4], dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
