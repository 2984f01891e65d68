"""Every detector of the table gives the scores of its paper's formula in float64."""

import functools

import numpy as np
import pytest
import timm
import torch

from isomax_adapters.pytorch_ood import NAMES, why_not

from .cases import differences, small_case
from .references import REFERENCES, difference

NEVER = {"MCM", "WeightedEBO"}  # which no model can have
OF_HEADS = {"EntropicScore", "MinimumDistanceScore", "MaxMeanLogitEntropyScore"}
# in standard deviations of the scores; where more than float32's rounding, why
TOLERANCE = {
    "GradNorm-all": 1e-2,  # sums over 370,000 parameters
    "MahalanobisODIN": 1e-2,  # the sign of a gradient near zero
    "NACUE": 0.3,  # a state next to an edge falls into either bin
    "ODIN": 1e-2,  # likewise
    "OpenMax": 1e-2,  # SciPy's search for the Weibull distribution ends a little early
    "RankFeat": 1e-2,  # what is left of the maps is small
    "TemperatureScaling": 3e-2,  # its labels are smoothed
}


@functools.cache
def case_of(name):
    return small_case(name, drop_rate=0.2)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NEVER))
def test_scores_are_the_papers(name):
    model, case = case_of("dismax_test_resnet" if name in OF_HEADS else "test_resnet")
    found = dict(differences(model, case, [name]))
    assert found[name] < TOLERANCE.get(name, 1e-3)


def test_every_detector_has_a_reference():
    assert set(REFERENCES) == set(NAMES) - NEVER
    for name in ("test_resnet", "dismax_test_resnet"):
        assert set(why_not(timm.create_model(name, num_classes=4))) >= NEVER


def test_a_difference_is_relative_to_the_spread_and_sees_what_changes_a_ranking():
    reference = np.arange(10.0)
    assert difference(3 * reference + 5, reference) == pytest.approx(0, abs=1e-12)
    assert difference(np.ones(10), reference) == np.inf
    assert difference(reference, np.ones(10)) == np.inf
    assert difference(-reference, reference) == np.inf
    swapped = torch.tensor(reference).flip(0)[[9, 8, 7, 6, 4, 5, 3, 2, 1, 0]].numpy()
    assert difference(swapped, reference) > 0.1
