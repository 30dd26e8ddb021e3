"""The search for the highest rate that is held, where windows differ by chance."""

import asyncio
from collections.abc import Callable

import pytest

from omniserve.bench.colocate.control.capacity import (
    Probe,
    WindowShare,
    capacity_of,
    search_capacity,
)
from omniserve.errors import OmniServeError


def search(within: Callable[[float, int], int]) -> tuple[Probe, ...]:
    """`within` says how many of the hundred requests of a window met their objectives."""

    async def measure(rate: float, number: int) -> WindowShare:
        return WindowShare(100, within(rate, number))

    return asyncio.run(search_capacity(16.0, measure))


def test_clear_rates_take_one_window_and_the_one_that_decides_takes_three() -> None:
    probes = search(lambda rate, _: 100 if rate <= 9.0 else 40)
    assert capacity_of(probes) == 8.72
    assert [len(each.windows) for each in probes] == [1, 1, 1, 1, 3]


def test_a_lucky_window_does_not_decide() -> None:
    def within(rate: float, number: int) -> int:
        return 100 if rate < 7.0 or (rate == 8.0 and number == 1) else 60

    probes = search(within)
    assert capacity_of(probes) == 4.0
    assert {each.rate: len(each.windows) for each in probes}[8.0] == 2


def test_windows_of_a_rate_are_judged_together() -> None:
    shares = {1: 97, 2: 90, 3: 95}
    probes = search(lambda rate, number: 100 if rate < 4.0 else shares[number])
    assert probes[0].text == "94% at 4 in 3 windows"
    assert not probes[0].is_held


def test_without_a_rate_that_is_held_there_is_no_capacity() -> None:
    with pytest.raises(OmniServeError, match="keeps 0% of 1.09 requests/s"):
        capacity_of(search(lambda *_: 0))
