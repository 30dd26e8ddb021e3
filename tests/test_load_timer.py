"""What keeps the generator's own time out of the server's."""

import asyncio
import gc
import time

import pytest

from omniserve.bench.load.precise_timer import PreciseTimer
from omniserve.bench.load.quiet_collector import quiet_collector


@pytest.mark.asyncio
async def test_a_timer_never_rings_early_and_rings_once() -> None:
    rung_s: list[float] = []
    timer = PreciseTimer(lambda: rung_s.append(time.monotonic()))
    for delay_s in (0.003, 0.0004, -1.0):
        due_s = time.monotonic() + delay_s
        timer.arm(due_s)
        while not rung_s:
            await asyncio.sleep(0.001)
        assert rung_s.pop() >= due_s
    await asyncio.sleep(0.01)
    assert rung_s == []
    timer.close()


@pytest.mark.asyncio
async def test_the_last_arming_counts() -> None:
    rung_s: list[float] = []
    timer = PreciseTimer(lambda: rung_s.append(time.monotonic()))
    timer.arm(time.monotonic())
    due_s = time.monotonic() + 0.02
    timer.arm(due_s)
    while not rung_s:
        await asyncio.sleep(0.001)
    assert rung_s[0] >= due_s
    timer.close()


@pytest.mark.asyncio
async def test_a_closed_timer_does_not_ring() -> None:
    rung: list[None] = []
    timer = PreciseTimer(lambda: rung.append(None))
    timer.arm(time.monotonic() + 0.005)
    timer.close()
    timer.close()
    await asyncio.sleep(0.01)
    assert rung == []


def test_the_collector_is_quiet_inside_and_as_it_was_after() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), quiet_collector():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
