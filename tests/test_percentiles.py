"""Percentiles, against the definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.percentiles import percentile


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_lie_between_the_nearest_ranks(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    expected = low + (high - low) * (rank - math.floor(rank))
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_percentile_of_nothing() -> None:
    assert percentile([], 50) is None
