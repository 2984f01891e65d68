"""The README's picture: what a softmax classifier says of photographs, and what IsoMax+ says.

``python picture.py SOFTMAX.onnx ISOMAXPLUS.onnx NAMES OUTPUT.jpg``: two files that were exported
from heads on the same backbone, trained on the same images; ``NAMES`` has a line for each class,
its name in the files and what people call it. The README's are models of the comparison on Tiny
ImageNet in RESULTS.md whose heads alone were trained: ``isomax export
OUTPUT/runs/softmax-seed0/model SOFTMAX.onnx``, and the same of ``isomaxplus-seed0``.

The photographs come with scikit-image, all in the public domain or CC0. Prints how many of all its
pictures each of the two files rejects.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
from matplotlib.figure import Figure
from PIL import Image

from isomax_adapters.runtime import Result, Scorer

KNOWN = "coffee.png"  #: the only one that shows a class
SHOWN = (KNOWN, "chelsea.png", "clock_motion.png", "coins.png", "retina.jpg", "rocket.jpg")


def main() -> int:
    softmax, isomax = Scorer(sys.argv[1]), Scorer(sys.argv[2])
    lines = Path(sys.argv[3]).read_text(encoding="utf-8").splitlines()
    words = dict(line.split(None, 1) for line in lines)
    called = {name: text.split(",")[0] for name, text in words.items()}
    folder = Path(skimage.__file__).parent / "data"
    files = sorted(f for f in folder.iterdir() if f.suffix in (".png", ".jpg"))
    squares = {f.name: square_of(f) for f in files if not f.name.startswith("chessboard")}
    said = {name: (softmax.score(one)[0], isomax.score(one)[0]) for name, one in squares.items()}
    unknown = [both for name, both in said.items() if name != KNOWN]
    for what, rejected in zip(
        ("softmax, energy", "isomax+"), zip(*unknown, strict=True), strict=True
    ):
        print(f"{what}: {sum(r.is_ood for r in rejected)} of {len(unknown)} pictures are unknown")
    figure = Figure(figsize=(2.1 * len(SHOWN), 3.1), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        theirs, ours = said[name]
        right = ours.is_ood is (name != KNOWN)
        axis.imshow(squares[name])
        axis.set(xticks=[], yticks=[])
        axis.set_title(
            f"softmax: {called[theirs.class_name]}\n{theirs.confidence:.0%} sure", fontsize=11
        )
        axis.set_xlabel(
            f"isomax+: {verdict(ours, called)}\np = {ours.p_value:.3f}",
            fontsize=11,
            weight="bold",
            color="#0072b2" if right else "#b34700",
        )
    figure.savefig(sys.argv[4], dpi=110)
    return 0


def verdict(result: Result, called: dict[str, str]) -> str:
    """The class in words, or that it is none."""
    return "unknown" if result.is_ood else called[result.class_name]


def square_of(file: Path) -> np.ndarray:
    """The middle of a picture, RGB."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


if __name__ == "__main__":
    sys.exit(main())
