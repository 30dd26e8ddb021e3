"""Refusals that are told at once, later, and in what number."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.access import refusal_pace
from omniserve.access.refusal_pace import AT_ONCE_PER_S, MOST_S, RefusalPace

NUM_AT_ONCE = round(AT_ONCE_PER_S * MOST_S)
PAUSES_S = st.lists(st.sampled_from((0.0, 0.0, 1 / 64, 1 / 16, 1.0, 30.0)), max_size=80)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_second_of_refusals_is_told_at_once_and_then_they_take_turns() -> None:
    pace = RefusalPace(10, Clock())
    delays = [pace.delay_s("acme") for _ in range(NUM_AT_ONCE + 3)]
    assert delays[:NUM_AT_ONCE] == [0.0] * NUM_AT_ONCE
    assert delays[NUM_AT_ONCE:] == pytest.approx([n / AT_ONCE_PER_S for n in (1, 2, 3)])
    assert pace.delay_s("other") == 0


@given(PAUSES_S)
def test_who_waits_for_each_answer_is_refused_no_more_often_than_the_pace(
    pauses_s: list[float],
) -> None:
    clock = Clock()
    pace = RefusalPace(10, clock)
    told_s: list[float] = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        clock.now_s += pace.delay_s("acme")
        told_s.append(clock.now_s)
    for first in range(len(told_s)):
        for last in range(first, len(told_s)):
            most = AT_ONCE_PER_S * (told_s[last] - told_s[first] + MOST_S) + 1e-6
            assert last - first + 1 <= most + 1


@given(PAUSES_S)
def test_nobody_waits_longer_than_the_most(pauses_s: list[float]) -> None:
    clock = Clock()
    pace = RefusalPace(10, clock)
    for pause_s in pauses_s:
        clock.now_s += pause_s
        assert 0 <= pace.delay_s("acme") <= MOST_S


@pytest.mark.asyncio
async def test_only_so_many_wait_and_a_cancelled_one_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Those who wait do so by the machine's clock: longer than any test.
    most_s = 600.0
    monkeypatch.setattr(refusal_pace, "MOST_S", most_s)
    pace = RefusalPace(2, Clock())
    for _ in range(round(2 * most_s * AT_ONCE_PER_S)):
        pace.delay_s("acme")
    waiting = [asyncio.create_task(pace.hold("acme")) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [False, False, True, True, True]
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    later = [asyncio.create_task(pace.hold("acme")) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in later] == [False, True]
    for task in (waiting[1], later[0]):
        task.cancel()


@pytest.mark.asyncio
async def test_a_deadline_is_not_waited_for() -> None:
    clock = Clock()
    pace = RefusalPace(2, clock)
    for _ in range(NUM_AT_ONCE + 40):
        pace.delay_s("acme")
    passed = asyncio.create_task(pace.hold("acme", clock.now_s - 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert passed.done()
