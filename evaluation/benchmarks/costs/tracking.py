"""What tracking to SQLite adds to an epoch of about a minute, measured alternately.

``tox -e overhead [-- ROUNDS]``: the same training, by the command line, with and without tracking;
the first epoch of each warms up. Also the processor time of the process that tracks, which a
machine with idle cores does not notice.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

EPOCHS, SIZE = 3, 192  # an epoch takes about a minute of two cores


def epochs_of(output: Path, *options: str) -> tuple[list[float], float]:
    """Train; seconds per image in each epoch but the first, and processor seconds of it all."""
    before = os.times()
    subprocess.run(
        [
            *(sys.executable, "-m", "isomax_evaluation", "train", "--data", "digits"),
            *("--model", "resnet18", "--image-size", str(SIZE), "--recipe", "digits"),
            *("--epochs", str(EPOCHS), "--output", str(output), *options),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"MLFLOW_TRACKING_URI": ""},
    )
    after = os.times()
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    processor = after.children_user + after.children_system
    processor -= before.children_user + before.children_system
    return [1 / row["images_per_second"] for row in rows[1:]], processor


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 2
    seconds: dict[str, list[float]] = {"--no-track": [], "--track": []}
    processor: dict[str, list[float]] = {"--no-track": [], "--track": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # in turns, and each first as often as the other
            for way in sorted(seconds, reverse=bool(number % 2)):
                found, used = epochs_of(Path(folder) / f"{number}{way}", way)
                seconds[way] += found
                processor[way].append(used)
                per_epoch = ", ".join(f"{1000 * value:.1f}" for value in found)
                print(f"{way}: {per_epoch} ms per image, {used:.0f} s of processor", flush=True)
    ratio = median(seconds["--track"]) / median(seconds["--no-track"])
    extra = median(processor["--track"]) - median(processor["--no-track"])
    print(f"an epoch with tracking takes {ratio:.3f} times as long as one without")
    print(
        f"processor time that tracking adds to {EPOCHS} epochs, its start included: {extra:.1f} s"
    )


if __name__ == "__main__":
    main()
