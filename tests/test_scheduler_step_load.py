"""Load of a step in the making: the same seconds as the model says of the finished one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.step_load import StepLoad, count_pairs
from scheduler.step_time import StepCosts

COSTS = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 5e-3), (8, 6e-3), (64, 40e-3), (256, 200e-3)),
    decode_row_s=1e-5,
    decode_context_token_s=1e-6,
    prefill_token_s=2e-6,
    prefill_pair_s=3e-8,
    prefill_context_token_s=4e-7,
    prefill_step_s=5e-4,
    prefill_chunk_s=2e-4,
    lane_row_s=1e-4,
    sampled_row_s=6e-5,
    cold_step_s=4e-4,
)

rows = st.tuples(st.integers(0, 5000), st.integers(1, 300), st.booleans())


def load_of(parts: list[tuple[int, int, bool]]) -> StepLoad:
    load = StepLoad(COSTS, coldness=0.3)
    for start, num_tokens, samples in parts:
        load.add(start, num_tokens, samples=samples)
    return load


@given(st.lists(rows, max_size=6))
def test_row_by_row_it_comes_to_what_the_model_says_of_all(
    parts: list[tuple[int, int, bool]],
) -> None:
    load = load_of(parts)
    assert abs(load.seconds - COSTS.step_s(load.shape)) < 1e-9


@given(st.lists(rows, max_size=4), rows)
def test_what_it_foresees_is_what_it_becomes(
    parts: list[tuple[int, int, bool]], more: tuple[int, int, bool]
) -> None:
    load = load_of(parts)
    start, num_tokens, samples = more
    foreseen_s = load.seconds_with(start, num_tokens, samples=samples)
    load.add(start, num_tokens, samples=samples)
    assert abs(load.seconds - foreseen_s) < 1e-9


@given(st.lists(rows, max_size=4), st.integers(0, 3000), st.integers(1, 600), st.floats(0, 0.5))
def test_the_most_that_fits_fits_and_one_more_would_not(
    parts: list[tuple[int, int, bool]], start: int, wanted: int, budget_s: float
) -> None:
    load = load_of(parts)
    most = load.most_tokens(start, wanted, budget_s)
    assert 0 <= most <= wanted
    # A single token runs as a decode row, whose costs are others than those of chunks.
    if most > 1:
        assert load.seconds_with(start, most) <= budget_s
    if 1 < most < wanted:
        assert load.seconds_with(start, most + 1) > budget_s


def test_lane_rows_share_the_staircase() -> None:
    load = load_of([(100, 1, True)])
    expected_s = COSTS.step_s(load.shape.with_lane_rows(8.0))
    assert abs(load.seconds + load.lane_rows_s(8)[8] - expected_s) < 1e-12


@given(st.integers(0, 50), st.integers(1, 50))
def test_pairs_are_those_under_the_causal_mask(start: int, num_tokens: int) -> None:
    by_hand = sum(position + 1 for position in range(start, start + num_tokens))
    assert count_pairs(start, num_tokens) == by_hand


@given(num_rows=st.integers(0, 700), most_more=st.integers(0, 700))
def test_what_rows_add_is_the_same_all_at_once_and_one_by_one(
    num_rows: int, most_more: int
) -> None:
    seconds = COSTS.dense_growth_s(num_rows, most_more)
    assert seconds == pytest.approx([COSTS.dense_s(num_rows + n) for n in range(most_more + 1)])
