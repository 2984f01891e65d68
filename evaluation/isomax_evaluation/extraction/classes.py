"""What a model does with the images of each class."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from isomax.doubts import binomial_tail

SURE = 0.01  # chance that any class has a rate so far above alpha, if alpha were right


def rates_of_classes(
    predicted: Tensor, labels: Tensor, rejected: Tensor | None, class_names: Sequence[str]
) -> pd.DataFrame:
    """Recall and false-alarm rate by true class.

    :param predicted: classes, :math:`N`
    :param labels: true classes, :math:`N`
    :param rejected: whether an image was called unknown, :math:`N`; ``None`` without a threshold
    :return: class, images, recall (share of them that is classified right), false_alarm_rate
        (share that is rejected); empty where a class has no images
    """
    rows = []
    right = (predicted == labels).double()
    for label, name in enumerate(class_names):
        mine = labels == label
        count = int(mine.sum())
        rows.append(
            {
                "class": name,
                "images": count,
                "recall": float(right[mine].mean()) if count else None,
                "false_alarm_rate": float(rejected[mine].double().mean())
                if count and rejected is not None
                else None,
            }
        )
    return pd.DataFrame(rows)


def summed_up(rates: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """The same by the name of the class, for JSON."""
    return {
        row.pop("class"): {name: None if value != value else value for name, value in row.items()}
        for row in rates.to_dict("records")
    }


def far_above(rates: pd.DataFrame, alpha: float) -> str:
    """The classes whose images are rejected far more often than ``alpha``; empty if there are none.

    The promise is for an image of any class: a rare class can be rejected whole.
    """
    rated = rates[rates["false_alarm_rate"].notna()]
    bad = [
        f"{row['class']} ({row['false_alarm_rate']:.0%} of {row['images']})"
        for row in rated.to_dict("records")
        if binomial_tail(round(row["false_alarm_rate"] * row["images"]), row["images"], alpha)
        < SURE / len(rated)
    ]
    if not bad:
        return ""
    plural = "es" if len(bad) > 1 else ""
    return (
        f"images of {len(bad)} class{plural} are rejected far more often than alpha = {alpha:g}: "
        f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}; give them more training "
        "images, or a larger share in training (--class-weights, --balanced-sampling)"
    )
