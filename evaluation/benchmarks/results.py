"""Comparisons put into the small tables beside this file, and the tables into RESULTS.md.

``python -m evaluation.benchmarks.results [--from OUTPUT...]``; without ``--from`` the page alone.
"""

import argparse
from pathlib import Path

from evaluation.benchmarks.claims.gathering import gather
from evaluation.benchmarks.claims.results_page import write_page

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--from", nargs="+", type=Path, dest="comparisons", default=[], metavar="OUTPUT",
        help="output folders of isomax compare, the main one first",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="of the tables")
    given = parser.parse_args()
    if given.comparisons:
        gather(given.comparisons, given.folder)
    print(f"wrote {write_page(given.folder, given.folder.resolve().parent / 'RESULTS.md')}")


if __name__ == "__main__":
    main()
