"""The ring under random interleavings, and that broken workers are found out by the same check."""

import random
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
from host_ring_model import RingWorld, Steps, Worker
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_attn.host import descriptor as d
from cpu_attn.host import ring


def _run(schedule: bytes, num_workers: int, worker_class: type[Worker] = Worker) -> int:
    """Results that came; raises AssertionError where something is wrong with them."""
    world = RingWorld(num_workers, worker_class)
    try:
        for choice in schedule:
            world.act(choice)
        world.finish()
        return world.num_results
    finally:
        world.close()


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=50, max_size=400), st.integers(1, 4))
def test_no_interleaving_loses_or_doubles_a_result(schedule: bytes, num_workers: int) -> None:
    _run(schedule, num_workers)


def test_thousands_of_random_interleavings() -> None:
    draw = random.Random(1)
    num_results = sum(_run(draw.randbytes(150), 1 + i % 3) for i in range(3000))
    assert num_results > 10_000


class _ClaimsWithoutComparing(Worker):
    def claim(self, cell: int, ticket: int) -> bool:
        super().claim(cell, ticket)
        return True


class _PublishesBeforeTheOthers(Worker):
    def end_part(self, cell: int) -> bool:
        super().end_part(cell)
        return True


class _SleepsWithoutLooking(Worker):
    def still_nothing(self, cell: int, position: int) -> bool:
        return True


class _ForgetsProgress(Worker):
    def count_progress(self) -> None:
        pass


class _AnnouncesBeforeWriting(Worker):
    def finish_task(self, cell: int, position: int, slot: int, payload: int) -> Steps:
        ring.publish_result(cell, position)
        ring.count_progress(self.world.control)
        yield
        self.world.write_result(slot, payload)
        yield


@pytest.mark.parametrize(
    "broken",
    [
        _ClaimsWithoutComparing,
        _PublishesBeforeTheOthers,
        _SleepsWithoutLooking,
        _ForgetsProgress,
        _AnnouncesBeforeWriting,
    ],
)
def test_broken_workers_are_found_out(broken: type[Worker]) -> None:
    draw = random.Random(2)
    with pytest.raises(AssertionError):
        for i in range(600):
            _run(draw.randbytes(150), 1 + i % 3, broken)


def _interleavings(first: int, second: int) -> Iterator[list[int]]:
    """All orders of two actors' steps: 0 and 1."""
    for places in combinations(range(first + second), second):
        order = [0] * (first + second)
        for place in places:
            order[place] = 1
        yield order


def _sleep_against_publication(order: list[int], *, looks_again: bool) -> bool:
    """Whether a sleeper, whose steps are 0, comes to see a task published meanwhile, steps 1."""
    words = np.zeros(64, dtype=np.int64)
    control, cell = words.ctypes.data, words.ctypes.data + d.CONTROL_BYTES
    seen: dict[str, int | bool] = {"asleep": False, "found": False}

    def announce() -> None:
        seen["sequence"] = ring.announce_sleep(control)

    def look() -> None:
        seen["found"] = looks_again and ring.read_ticket(cell) >> d.LOW_BITS == 1

    def wait() -> None:
        unchanged = int(words[d.WAKE // 8]) & 0xFFFFFFFF == seen["sequence"]
        seen["asleep"] = not seen["found"] and unchanged

    def count() -> None:
        seen["sleepers"] = ring.count_sleepers(control)

    def wake() -> None:
        if seen["sleepers"]:
            ring.wake(control, 1)
            seen["asleep"] = False

    actors: list[list[Callable[[], None]]] = [
        [announce, look, wait],
        [lambda: ring.publish(cell, 1, 1), count, wake],
    ]
    for actor in order:
        actors[actor].pop(0)()
    return not seen["asleep"]


def test_no_order_of_sleeping_and_publishing_loses_a_wake() -> None:
    orders = list(_interleavings(3, 3))
    assert all(_sleep_against_publication(order, looks_again=True) for order in orders)
    assert not all(_sleep_against_publication(order, looks_again=False) for order in orders)


def test_a_ticket_holds_the_position() -> None:
    """A worker that read a ticket and slept over a round of the ring gets no part."""
    words = np.zeros(d.CELL_WORDS, dtype=np.int64)
    cell = words.ctypes.data
    ring.publish(cell, 3, 1)
    old = ring.read_ticket(cell)
    assert ring.claim(cell, old)
    assert not ring.claim(cell, old)
    assert ring.fail_part(cell, d.HostStatus.BAD_LAYER)
    ring.publish_result(cell, 3)
    assert ring.read_result(cell, 3) == d.HostStatus.BAD_LAYER
    ring.publish(cell, 7, 1)
    assert ring.read_result(cell, 7) == -1
    assert not ring.claim(cell, old)
    assert ring.claim(cell, ring.read_ticket(cell))
    ring.publish_result(cell, 7)
    assert ring.read_result(cell, 7) == d.HostStatus.OK
