"""Tables of results on disk, as CSV."""

from pathlib import Path

import pandas as pd

from isomax_evaluation.output.files import write_whole


def read_table(path: Path) -> pd.DataFrame:
    """A table of results as it was written: a dataset called 007 or NA keeps its name."""
    names = dict.fromkeys(("loss", "detector", "ood", "error", "reason", "class"), str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV, whole or not at all."""
    write_whole(path, lambda partial: table.to_csv(partial, index=False))
