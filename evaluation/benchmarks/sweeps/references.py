"""Every detector against an independent reference in float64: the largest difference of each.

``tox -e references``. On small models trained on the spot; with ``--weights`` and ``--data`` on
EfficientNet-Lite0 as well, with images of a folder per class. Differences are in standard
deviations of the test images' scores, up to scale and offset, which change no ranking.
"""

import argparse
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.adapters.pytorch_ood.cases import differences, efficientnet_case, small_case
from tests.adapters.pytorch_ood.references import REFERENCES

OF_HEADS = ["EntropicScore", "MinimumDistanceScore", "MaxMeanLogitEntropyScore"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="state dict of tf_efficientnet_lite0")
    parser.add_argument("--data", type=Path, help="folder of a folder of images per class")
    parser.add_argument("--per-class", type=int, default=75, help="images to fit on")
    parser.add_argument("--size", type=int, default=96, help="of the images")
    options = parser.parse_args()
    if (options.weights is None) != (options.data is None):
        parser.error("--weights and --data go together")
    warnings.simplefilter("ignore")
    cases = {
        "test_resnet": lambda: small_case("test_resnet", drop_rate=0.2),
        "dismax_test_resnet": lambda: small_case("dismax_test_resnet"),
    }
    if options.weights is not None:
        cases["tf_efficientnet_lite0"] = lambda: efficientnet_case(
            options.weights, options.data, options.per_class, options.size
        )
    columns: dict[str, dict[str, float]] = {}
    for title, case in cases.items():
        names = OF_HEADS if title.startswith("dismax") else REFERENCES
        columns[title] = {}
        for name, found in differences(*case(), names):
            print(f"{title}: {name} {found:.1e}", file=sys.stderr, flush=True)
            columns[title][name] = found
    table = Table("detector", *columns)
    for name in REFERENCES:
        cells = [f"{found[name]:.1e}" if name in found else "" for found in columns.values()]
        table.add_row(name, *cells)
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
