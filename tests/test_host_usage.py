"""How busy the machine is."""

import os

import pytest

from omniserve.status.host_usage import CoreTimes, HostMeter


@pytest.mark.parametrize(
    ("second", "busy_share"),
    [
        (CoreTimes(110.0, 55.0), 0.5),
        (CoreTimes(110.0, 60.0), 0.0),
        (CoreTimes(110.0, 50.0), 1.0),
        (CoreTimes(100.0, 50.0), 0.0),
        # Counters of cores that are read one after the other.
        (CoreTimes(110.0, 49.9), 1.0),
        (CoreTimes(110.0, 60.1), 0.0),
    ],
)
def test_the_share_is_of_the_time_between_two_measurements(
    second: CoreTimes, busy_share: float
) -> None:
    times = iter([CoreTimes(100.0, 50.0), second])
    meter = HostMeter(lambda: next(times))
    assert meter.measure().busy_share == pytest.approx(busy_share)


def test_this_machine() -> None:
    meter = HostMeter()
    total = sum(range(200_000))
    usage = meter.measure()
    assert total and usage.num_cores == len(os.sched_getaffinity(0))
    assert 0.0 <= usage.busy_share <= 1.0
    assert 0 < usage.memory_used_bytes < usage.memory_total_bytes
