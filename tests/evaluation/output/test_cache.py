"""What is kept under a key of all that it depends on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isomax_evaluation.output.cache import Cache, key_of
from isomax_evaluation.output.errors import InputError

abouts = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5))


@given(abouts, abouts)
def test_keys_are_alike_where_all_is(one, other):
    assert (key_of(one) == key_of(other)) == (one == other)


def test_a_result_is_computed_once_and_is_the_same_when_it_is_found_again(tmp_path):
    cache, computed = Cache(tmp_path / "cache"), []

    def compute():
        computed.append(1)
        return {"share": 0.1 + 0.2, "none": math.nan, "pair": (1, 2)}

    first, again = (cache.kept({"detector": "KNN", "k": "5"}, compute) for _ in range(2))
    assert len(computed) == 1
    assert repr(first) == repr(again)
    assert first["share"] == 0.1 + 0.2
    assert cache.read({"detector": "KNN", "k": "7"}) is None


def test_a_damaged_file_is_named(tmp_path):
    cache = Cache(tmp_path)
    cache.write({"detector": "KNN"}, 1.5)
    next(tmp_path.iterdir()).write_text("{")
    with pytest.raises(InputError, match=r"\.json is damaged .* delete that file"):
        cache.read({"detector": "KNN"})
