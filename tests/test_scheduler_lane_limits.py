"""Lane limits: rows at each layer, paid for out of what a step has left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import LaneAllowance, LaneLimits

LINEAR = tuple(1e-3 * num for num in range(9))
"""A row at every layer adds a millisecond."""


def test_without_times_each_layer_has_its_most() -> None:
    assert LaneAllowance(LaneLimits(4), 3).grant([9, 0, 2]) == [4, 0, 2]


def test_lowest_layers_first_until_the_time_is_spent() -> None:
    # 2 ms at four layers: eight rows at one layer each.
    allowance = LaneAllowance(LaneLimits(8, LINEAR, 2e-3 + 1e-9), 4)
    assert allowance.grant([3, 0, 4, 5]) == [3, 0, 4, 1]
    assert allowance.grant([1]) == [0]


def test_what_one_binding_leaves_is_the_next_ones() -> None:
    allowance = LaneAllowance(LaneLimits(8, LINEAR, 1e-3 + 1e-9), 4)
    assert allowance.grant([1, 1]) == [1, 1]
    assert allowance.grant([5, 5]) == [2, 0]


def test_rows_that_cost_nothing_more_join_freely() -> None:
    # Up to four rows fit the tile that is computed anyway.
    tile = (0.0, 0.0, 0.0, 0.0, 0.0, 5e-3)
    assert LaneAllowance(LaneLimits(5, tile, 0.0), 2).grant([5, 3]) == [4, 3]


@pytest.mark.parametrize(("budget_s", "entries"), [(0.5e-3, 1), (3.5e-3, 3), (1.0, 8)])
def test_as_many_enter_as_could_pass_every_layer(budget_s: float, entries: int) -> None:
    assert LaneLimits(8, LINEAR, budget_s).max_entries == entries


@given(
    st.lists(st.floats(0, 1e-2), min_size=1, max_size=20),
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.floats(0, 0.1),
)
def test_never_more_time_than_there_is(
    increments: list[float], num_ready: list[int], budget_s: float
) -> None:
    seconds = [0.0]
    for increment in increments:
        seconds.append(seconds[-1] + increment)
    limits = LaneLimits(len(increments), tuple(seconds), budget_s)
    granted = LaneAllowance(limits, len(num_ready)).grant(num_ready)
    taken_s = sum(seconds[num] for num in granted) / len(num_ready)
    assert taken_s <= budget_s + 1e-9
    assert all(
        0 <= num <= min(ready, limits.max_rows)
        for num, ready in zip(granted, num_ready, strict=True)
    )
