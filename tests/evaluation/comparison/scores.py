"""The tables of scores that a comparison writes."""

import numpy as np
import pandas as pd

from isomax_evaluation.detection.testing.scores import scores_path


def read_scores(folder, name):
    """Scores of a set by detector, float32."""
    table = pd.read_csv(scores_path(folder, name), float_precision="round_trip")
    return {name: table[name].to_numpy(np.float32) for name in table.columns[2:]}
