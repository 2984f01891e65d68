"""Tables of results on disk, as CSV."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from isomax_evaluation.output.files import TEXT, write_whole

NAMES = ("loss", "detector", "ood", "error", "reason", "class")


def as_they_are(names: Iterable[str]) -> pd.Series:
    """A column of paths: pandas' own text refuses those that are no UTF-8."""
    return pd.Series(list(names), dtype=object)


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A table of results as it was written: a dataset called 007 or NA keeps its name.

    :param options: of ``pd.read_csv``, in the place of those for such tables
    """
    as_written: dict[str, Any] = {
        "dtype": dict.fromkeys(NAMES, str),
        "keep_default_na": False,
        "na_values": [""],
        "encoding": TEXT["encoding"],
        "encoding_errors": TEXT["errors"],
    }
    return pd.read_csv(path, **(as_written | options))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV, whole or not at all."""
    write_whole(path, lambda partial: table.to_csv(partial, index=False, **TEXT))
