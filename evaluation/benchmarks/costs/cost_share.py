"""What measuring costs takes of a comparison: two models, all detectors, random pixels and weights.

``python -m evaluation.benchmarks.costs.cost_share``; with ``--classes 120 --test 60`` in minutes.
"""

import argparse
import tempfile
import time
from typing import Any

import timm
import torch
from torch.utils.data import TensorDataset

from isomax_adapters.pytorch_ood import NAMES, Parts
from isomax_evaluation import compare
from isomax_evaluation.detection.testing import results


def tensors(count: int, size: int, labels: torch.Tensor) -> TensorDataset:
    return TensorDataset(torch.randn(count, 3, size, size), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="tf_efficientnet_lite0,mobilenetv3_small_100")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument(
        "--classes",
        type=int,
        default=999,
        help="an image of each to fit on; not 1000",
    )
    parser.add_argument("--test", type=int, default=150, help="images of the ID and the OOD set")
    given = parser.parse_args()
    spent: list[float] = []
    measure = results.measure_costs

    def timed(*args: Any) -> dict[str, dict[str, Any]]:
        started = time.perf_counter()
        costs = measure(*args)
        spent.append(time.perf_counter() - started)
        return costs

    results.measure_costs = timed
    torch.manual_seed(0)
    names = given.models.split(",")
    models = {name: Parts(timm.create_model(name, num_classes=given.classes)) for name in names}
    train = tensors(given.classes, given.size, torch.arange(given.classes))
    test = tensors(given.test, given.size, torch.arange(given.test) % given.classes)
    unknown = tensors(given.test, given.size, torch.full((given.test,), -1))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = compare(
            id={"noise": (train, test)}, ood={"other": unknown}, models=models,
            detectors=NAMES, output=folder,
        )  # fmt: skip
    whole = time.perf_counter() - started
    columns = ["loss", "detector", "ms_per_image", "relative_time", "spread"]
    print(done.costs[columns].to_string(float_format="%.3f"))
    each = ", ".join(f"{seconds:.1f}" for seconds in spent)
    print(f"costs {sum(spent):.1f} s ({each}) of {whole:.1f} s in all: {sum(spent) / whole:.3f}")


if __name__ == "__main__":
    main()
