"""What a model does with the images of each class."""

import pandas as pd
import pytest
import torch

from isomax_evaluation.extraction.classes import far_above, rates_of_classes, summed_up


def long_tail():
    """Test images of three classes, 80, 8 and 2; the rare ones are all rejected."""
    labels = torch.tensor([0] * 80 + [1] * 8 + [2] * 2)
    rejected = labels == 2
    rejected[0] = True
    predicted = labels.clone()
    predicted[80] = 0
    return rates_of_classes(predicted, labels, rejected, ("common", "some", "rare", "none"))


def test_each_class_has_its_recall_and_its_false_alarms():
    found = long_tail().set_index("class")
    assert found["images"].to_dict() == {"common": 80, "some": 8, "rare": 2, "none": 0}
    assert found["recall"].dropna().to_dict() == {"common": 1.0, "some": 0.875, "rare": 1.0}
    alarms = found["false_alarm_rate"].dropna().to_dict()
    assert alarms == {"common": pytest.approx(1 / 80), "some": 0.0, "rare": 1.0}
    assert summed_up(long_tail())["none"] == {
        "images": 0, "recall": None, "false_alarm_rate": None,
    }  # fmt: skip


def test_a_class_that_is_rejected_whole_is_named_though_the_overall_rate_is_right():
    rates = long_tail()
    overall = (rates["false_alarm_rate"] * rates["images"]).sum() / rates["images"].sum()
    assert overall < 0.05
    said = far_above(rates, 0.05)
    assert "rare (100% of 2)" in said
    assert "common" not in said.replace("rare", "")
    assert "--class-weights, --balanced-sampling" in said


def test_a_model_without_a_threshold_has_no_false_alarms():
    labels = torch.tensor([0, 1, 1])
    rates = rates_of_classes(labels, labels, None, ("a", "b"))
    assert rates["false_alarm_rate"].isna().all()
    assert far_above(rates, 0.05) == ""


def test_rates_at_alpha_are_seldom_far_above_it():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(50)
    warned = 0
    for _ in range(200):
        rejected = torch.rand(len(labels), generator=generator) < 0.05
        rates = rates_of_classes(labels, labels, rejected, tuple(map(str, range(20))))
        assert isinstance(rates, pd.DataFrame)
        warned += far_above(rates, 0.05) != ""
    assert warned <= 6  # of 200, at most one in a hundred on average
