"""Quantiles a part at a time are those of numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from isomax_adapters.pytorch_ood import quantiles

numbers = st.floats(-100, 100, width=32)
arrays = st_numpy.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.integers(1, 7)), elements=numbers
)


@given(arrays, st.floats(0, 1))
def test_overall_quantile_is_numpys(values, share):
    expected = np.quantile(values.astype(np.float64), share)
    assert quantiles.overall_quantile(values, share) == pytest.approx(expected, abs=1e-9)


@given(arrays, st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_column_quantiles_are_numpys(values, shares):
    expected = np.quantile(values, shares, axis=0)
    np.testing.assert_allclose(quantiles.column_quantiles(values, shares), expected)


def test_a_few_values_at_a_time(monkeypatch, tmp_path):
    values = np.memmap(tmp_path / "values", np.float32, "w+", shape=(50, 7))
    values[:] = np.random.default_rng(0).normal(size=(50, 7))
    before = values.copy()
    monkeypatch.setattr(quantiles, "CHUNK", 9)
    monkeypatch.setattr(quantiles, "COLUMNS", 100)
    expected = np.quantile(before.astype(np.float64), 0.9)
    assert quantiles.overall_quantile(values, 0.9) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(
        quantiles.column_quantiles(values, [0.1, 0.8]), np.quantile(before, [0.1, 0.8], axis=0)
    )
    np.testing.assert_array_equal(values, before)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantiles.overall_quantile(np.array([1.0, np.nan], np.float32), 0.5)
