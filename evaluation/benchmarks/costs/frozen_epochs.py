"""How much faster a head trains on kept features than behind a frozen backbone, per epoch.

``tox -e frozen-epochs -- --weights FILE --data FOLDER``; both in turns, in one process, on one
thread; prints the median times of an epoch and their ratio.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from isomax_evaluation import train
from isomax_evaluation.data.settings import Preprocessing, Reading
from isomax_evaluation.output.files import read_lines
from isomax_evaluation.training.recipes import RECIPES
from isomax_evaluation.training.source import Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    finetune = replace(RECIPES["finetune"], keep="last")
    behind = replace(finetune, epochs=1, freeze_backbone=1, head_first=0)
    kept = replace(finetune, epochs=0, head_first=20)
    times: dict[str, list[float]] = {"behind": [], "kept": []}
    for _ in range(options.repeats):
        for name, recipe in (("behind", behind), ("kept", kept)):
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "out"
                train(
                    options.data,
                    output,
                    model=Source(options.model, weights=options.weights),
                    loss="isomax",
                    recipe=recipe,
                    images_per_class=options.per_class,
                    preprocessing=Preprocessing(image_size=options.size),
                    reading=Reading(workers=0),
                )
                row = read_lines(output / "metrics.jsonl")[-1]
                if name == "kept":
                    times[name].append(row["head_seconds"])
                else:
                    times[name].append(_images(output) / row["images_per_second"])
    behind_, kept_ = (statistics.median(values) for values in times.values())
    print(f"an epoch behind the frozen backbone {behind_:.2f} s, on kept features {kept_:.3f} s")
    print(f"ratio {behind_ / kept_:.0f}")


def _images(output: Path) -> int:
    return int(json.loads((output / "settings.json").read_text())["images"]["train"])


if __name__ == "__main__":
    main()
