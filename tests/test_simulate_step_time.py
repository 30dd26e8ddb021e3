"""Step times: sums by hand, and the roofline."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.simulate.roofline import DevicePeaks, ModelSize, roofline_step_time
from scheduler.step_time import LinearStepTime, StepCosts, StepShape, coldness_after

LADDER = ((1, 1.0), (4, 2.5), (8, 3.5))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(0.5, 1.0), (1, 1.0), (2, 1.5), (4, 2.5), (6, 3.0), (8, 3.5), (12, 4.5)],
)
def test_ladder_is_interpolated_and_goes_on_behind_its_end(rows: float, expected: float) -> None:
    assert StepCosts(0.0, LADDER).dense_s(rows) == pytest.approx(expected)


@given(st.floats(min_value=1, max_value=8))
def test_ladder_agrees_with_numpy_between_its_ends(rows: float) -> None:
    expected = np.interp(rows, [1, 4, 8], [1.0, 2.5, 3.5])
    assert StepCosts(0.0, LADDER).dense_s(rows) == pytest.approx(float(expected))


def test_ladder_of_one_entry_is_flat() -> None:
    costs = StepCosts(0.0, ((16, 2.0),))
    assert [costs.dense_s(rows) for rows in (1, 16, 99)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("ladder", [(), ((4, 1.0), (1, 1.0)), ((4, 1.0), (4, 2.0))])
def test_ladder_must_ascend(ladder: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="dense_ladder"):
        StepCosts(0.0, ladder)


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf")])
def test_nothing_takes_less_than_no_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="overhead_s"):
        StepCosts(seconds, LADDER)
    with pytest.raises(ValueError, match="prefill_pair_s"):
        StepCosts(0.0, LADDER, prefill_pair_s=seconds)
    with pytest.raises(ValueError, match="dense_ladder"):
        StepCosts(0.0, ((1, seconds), (2, 1.0)))


def test_step_is_the_sum_of_its_terms() -> None:
    costs = StepCosts(
        overhead_s=1000.0,
        dense_ladder=((0, 0.0), (100, 100.0)),
        decode_row_s=0.1,
        decode_context_token_s=0.01,
        prefill_token_s=0.2,
        prefill_pair_s=0.001,
        prefill_step_s=0.7,
        prefill_chunk_s=0.05,
        lane_row_s=0.3,
        sampled_row_s=0.4,
        cold_step_s=20.0,
    )
    shape = StepShape(
        num_decode_rows=3,
        decode_context_tokens=50,
        num_prefill_tokens=10,
        prefill_pairs=55,
        num_lane_rows=2,
        num_sampled_rows=4,
        num_prefill_chunks=2,
        coldness=0.5,
    )
    by_hand = 1000 + (3 + 10 + 2) + 3 * 0.1 + 50 * 0.01 + 10 * 0.2 + 55 * 0.001 + 2 * 0.3 + 4 * 0.4
    by_hand += 0.7 + 2 * 0.05 + 0.5 * 20
    assert costs.step_s(shape) == pytest.approx(by_hand)
    assert costs.times(1.5).step_s(shape) == pytest.approx(1.5 * by_hand)


def test_large_steps_leave_cold_caches_and_small_ones_warm_them() -> None:
    """By hand: halfway from what it was to what the step's rows make it."""
    assert [coldness_after(0.0, rows) for rows in (0, 64, 128, 999)] == [0.0, 0.25, 0.5, 0.5]
    assert coldness_after(0.5, 512) == 0.75
    assert coldness_after(0.5, 0) == 0.25


def test_costs_beside_the_host_count_while_it_is_active() -> None:
    alone, beside = StepCosts(1.0, ((1, 0.0),)), StepCosts(2.0, ((1, 0.0),))
    shared, own = LinearStepTime(alone, beside), LinearStepTime(alone)
    assert shared.costs(host_active=False) is alone
    assert shared.costs(host_active=True) is beside
    assert own.costs(host_active=True) is alone


def test_roofline_reads_weights_for_few_rows_and_computes_for_many() -> None:
    # 1e9 parameters of 2 bytes; 1e14 operations and 1e12 bytes a second are got to.
    size = ModelSize(1_000_000_000, 2.0, num_layers=10, query_size=1000, kv_bytes_per_token=20_000)
    device = DevicePeaks(2e14, 2e12, flops_share=0.5, bytes_share=0.5, step_overhead_s=0.0)
    step_time = roofline_step_time(size, device)
    # Few rows: 2e9 bytes of weights, and 20 kB for each of 5,000 tokens of context.
    assert step_time.alone.step_s(StepShape(5, 5000)) == pytest.approx(2e-3 + 1e-4)
    # Many: 2 operations for each parameter and row; 4 x 10 layers x 1000 for each pair.
    pairs = 1000 * 1001 // 2
    assert step_time.alone.step_s(StepShape(0, 0, 1000, pairs)) == pytest.approx(
        2e9 * 1000 / 1e14 + pairs * 40_000 / 1e14
    )
