"""When best-effort work is predicted to go faster with attention on the host."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduler.offload_rule import (
    DeviceSpeed,
    HostSpeed,
    Load,
    device_tokens_per_s,
    is_worth_offloading,
    piggyback_tokens_per_s,
)

ALONE = DeviceSpeed(step_s=0.006, row_s=0.0002, kv_bytes_per_s=50e9)
BESIDE = DeviceSpeed(step_s=0.008, row_s=0.0004, kv_bytes_per_s=30e9)
SPEED = HostSpeed(ALONE, BESIDE, host_kv_bytes_per_s=25e9)
LOAD = Load(
    num_ls_rows=4,
    ls_kv_bytes=4 * 200 * 16384.0,
    num_best_effort=128,
    kv_bytes_per_request=1000 * 16384.0,
    num_resident=1,
    num_lanes=128,
    max_lane_rows=8,
    num_layers=8,
)


def test_step_times_add_up() -> None:
    assert ALONE.step_time_s(1, 0) == 0.006
    assert ALONE.step_time_s(6, 50e6) == 0.006 + 5 * 0.0002 + 0.001


def test_it_is_worth_it_where_device_memory_is_short() -> None:
    assert is_worth_offloading(LOAD, SPEED, offloading=False)


def test_it_is_not_where_everyone_finds_room() -> None:
    assert not is_worth_offloading(replace(LOAD, num_resident=128), SPEED, offloading=True)


def test_it_is_not_where_the_device_holds_many() -> None:
    assert not is_worth_offloading(replace(LOAD, num_resident=24), SPEED, offloading=False)


def test_it_is_not_where_the_host_is_slow() -> None:
    slow = replace(SPEED, host_kv_bytes_per_s=1e8)
    assert not is_worth_offloading(LOAD, slow, offloading=False)


def test_few_requests_are_slow_on_the_host() -> None:
    """A request moves one layer a step."""
    assert not is_worth_offloading(replace(LOAD, num_best_effort=4), SPEED, offloading=False)


def test_what_is_done_goes_on_a_little_longer() -> None:
    """Around the point of equal speed the answer is that of before."""
    answers = [
        (
            is_worth_offloading(replace(LOAD, num_resident=n), SPEED, offloading=False),
            is_worth_offloading(replace(LOAD, num_resident=n), SPEED, offloading=True),
        )
        for n in range(1, 32)
    ]
    assert (False, True) in answers
    assert (True, False) not in answers
    assert answers == sorted(answers, reverse=True)


@given(st.integers(0, 64), st.integers(1, 64), st.integers(1, 300))
def test_piggybacking_is_never_promised_more_than_its_limits(
    num_resident: int, max_lane_rows: int, num_lanes: int
) -> None:
    load = replace(
        LOAD, num_resident=num_resident, max_lane_rows=max_lane_rows, num_lanes=num_lanes
    )
    resident = device_tokens_per_s(replace(load, num_resident=max(0, num_resident - 1)), ALONE)
    lanes = piggyback_tokens_per_s(load, SPEED) - resident
    assert lanes <= SPEED.host_kv_bytes_per_s / load.kv_bytes_per_request + 1e-6
    assert lanes <= max_lane_rows / BESIDE.step_s
    assert lanes <= num_lanes / (load.num_layers * BESIDE.step_s)
