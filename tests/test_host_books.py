"""The publisher's books: queue, ring and recovery; workers are played by the test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from host_attention_builders import make_model, open_books
from host_pool_builders import make_pool

from cpu_attn.host import descriptor as d
from cpu_attn.host import ledger, ring
from cpu_attn.host.books import TaskBooks
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.slots import ModelMemory, RingMemory

_NUM_SLOTS = 8
_NUM_CELLS = 4


@dataclass(frozen=True)
class Desk:
    """Books of two models over a ring of four cells."""

    memory: RingMemory
    models: list[ModelMemory]
    books: TaskBooks

    def cell(self, position: int) -> int:
        return int(ring.cell_of(self.memory.cells, self.memory.mask, position))

    def claim(self, position: int) -> None:
        ticket = ring.read_ticket(self.cell(position))
        assert ticket >> d.LOW_BITS == position
        assert ring.claim(self.cell(position), ticket)

    def finish(self, position: int) -> None:
        ring.publish_result(self.cell(position), position)
        ring.count_progress(self.memory.control)

    def collect(self) -> list[tuple[int, int, int]]:
        """(model, slot, status), and publishes what waits."""
        results = self.books.collect()
        self.books.publish()
        columns = (results.model.tolist(), results.slot.tolist(), results.status.tolist())
        return list(zip(*columns, strict=True))

    def counter(self, index: int) -> int:
        return int(self.books.counters[index])


@pytest.fixture
def desk() -> Iterator[Desk]:
    pool = make_pool(num_blocks=1)
    models = [make_model(pool, max_context_len=3000, max_q_len=2), make_model(pool, num_heads=2)]
    memory = replace(RingMemory.create(_NUM_SLOTS), num_cells=_NUM_CELLS)
    slots = [ModelMemory.create(model, _NUM_SLOTS) for model in models]
    yield Desk(memory, slots, open_books(models, _NUM_SLOTS, memory, slots, 2))
    for shared in (memory.memory, *(each.memory for each in slots)):
        shared.close()
    pool.close()


def test_what_the_ring_has_no_room_for_waits_its_turn(desk: Desk) -> None:
    desk.books.add(1, np.arange(6), 1, 10, 1)
    desk.books.publish()
    assert desk.books.num_in_flight == 6
    assert desk.books.num_unfinished == _NUM_CELLS
    # Position 1 takes long: nothing may overtake it by more than a round of the ring.
    for position in (2, 3, 4):
        desk.finish(position)
    assert desk.collect() == [(1, 1, 0), (1, 2, 0), (1, 3, 0)]
    assert desk.books.num_unfinished == 1
    desk.finish(1)
    assert desk.collect() == [(1, 0, 0)]
    assert desk.books.num_unfinished == 2
    desk.finish(6)
    desk.finish(5)
    assert desk.collect() == [(1, 4, 0), (1, 5, 0)]
    assert desk.books.num_in_flight == 0
    assert desk.collect() == []


def test_a_refused_call_leaves_no_trace(desk: Desk) -> None:
    with pytest.raises(ValueError, match="slots: 2 has a task in flight"):
        desk.books.add(0, [1, 2, 3, 2], 0, 10, 1)
    with pytest.raises(ValueError, match="context_lens: 3009"):
        desk.books.add(0, [1, 2], 0, [5, 3009], 1)
    assert desk.books.num_in_flight == 0
    desk.books.add(0, [3, 2, 1], 0, 10, 1)
    assert desk.books.in_flight(0).nonzero()[0].tolist() == [1, 2, 3]
    assert not desk.books.in_flight(1).any()


def test_the_query_tokens_need_blocks(desk: Desk) -> None:
    tables = desk.models[0].slots.block_tables
    for entry, wrong in ((4, -1), (4, 1), (5, -1)):
        tables[1] = 0
        tables[1, entry] = wrong
        with pytest.raises(ValueError, match=r"slot 1 has no blocks for tokens 79\.\.80"):
            desk.books.add(0, [0, 1], 0, 81, 2)
    tables[1] = -1
    tables[1, 4:6] = 0
    desk.books.add(0, [0, 1], 0, 81, 2)
    assert desk.books.num_in_flight == 2


def test_released_tasks_that_still_wait_are_never_published(desk: Desk) -> None:
    desk.books.add(0, np.arange(6), 0, 10, 1)
    desk.books.publish()
    desk.books.release(0, [0, 5])
    for position in range(1, 5):
        desk.finish(position)
    assert desk.collect() == [(0, 1, 0), (0, 2, 0), (0, 3, 0)]
    assert desk.books.num_in_flight == 1
    assert desk.counter(ledger.TAIL) == 6
    assert desk.counter(ledger.NUM_DROPPED) == 2


def test_after_a_death_unfinished_tasks_come_first_and_finished_ones_stay(desk: Desk) -> None:
    desk.books.add(0, np.arange(6), 0, 10, 1)
    desk.books.publish()
    desk.claim(2)
    # It died between the result and its progress.
    ring.publish_result(desk.cell(2), 2)
    desk.claim(3)
    ring.announce_sleep(desk.memory.control)
    ring.request_stop(desk.memory.control)
    desk.books.release(0, 0)
    desk.books.recover(3)
    assert ring.count_sleepers(desk.memory.control) == 0
    assert not ring.stop_requested(desk.memory.control)
    desk.books.publish()
    assert desk.collect() == [(0, 1, 0)]
    assert desk.counter(ledger.NUM_REDONE) == 2
    assert desk.counter(ledger.NUM_DROPPED) == 1
    slots = []
    for position in range(5, 9):
        desk.claim(position)
        desk.finish(position)
        slots += desk.collect()
    assert slots == [(0, slot, 0) for slot in (2, 3, 4, 5)]
    assert desk.books.num_in_flight == 0


def test_a_task_that_kills_its_worker_again_and_again_ends_as_crashed(desk: Desk) -> None:
    desk.books.add(0, [0, 1], 0, 10, 1)
    desk.books.publish()
    position = 1
    for _ in range(3):
        assert desk.collect() == []
        desk.claim(position)
        desk.books.recover(3)
        desk.books.publish()
        # The other one was never begun, and is not to blame.
        position = desk.counter(ledger.TAIL) - desk.books.num_unfinished
    assert desk.collect() == [(0, 0, HostStatus.CRASHED)]
    assert desk.counter(ledger.NUM_CRASHED) == 1
    assert desk.books.num_unfinished == 1
    desk.finish(position)
    assert desk.collect() == [(0, 1, HostStatus.OK)]


def test_unclaimed_parts_of_a_dead_process_cannot_be_claimed(desk: Desk) -> None:
    desk.books.add(0, [0], 0, 3000, 1)
    desk.books.publish()
    desk.claim(1)
    desk.books.recover(1)
    assert ring.read_ticket(desk.cell(1)) & d.LOW_MASK == 0
    assert desk.collect() == [(0, 0, HostStatus.CRASHED)]


def test_abandoned_tasks_come_back_once(desk: Desk) -> None:
    desk.books.add(1, np.arange(6), 0, 10, 1)
    desk.books.publish()
    desk.books.release(1, [3])
    lost = desk.books.abandon()
    assert lost.slot.tolist() == [0, 1, 2, 4, 5]
    assert set(lost.status.tolist()) == {HostStatus.CRASHED}
    assert desk.books.num_in_flight == 0
    assert desk.collect() == []
    desk.books.add(1, [3], 0, 10, 1)
    desk.books.publish()
    desk.finish(desk.counter(ledger.TAIL) - 1)
    assert desk.collect() == [(1, 3, 0)]
    assert (desk.counter(ledger.NUM_DONE), desk.counter(ledger.NUM_CRASHED)) == (6, 5)
    assert desk.counter(ledger.NUM_DROPPED) == 1


@pytest.mark.parametrize("forget", [TaskBooks.abandon, TaskBooks.drop_all])
def test_a_later_process_finds_nothing_of_what_was_given_up(
    desk: Desk, forget: Callable[[TaskBooks], object]
) -> None:
    desk.books.add(1, np.arange(6), 0, 10, 1)
    desk.books.publish()
    desk.finish(1)
    desk.collect()
    # As after a death: what was unfinished waits on the ring for the next process.
    desk.books.recover(3)
    assert desk.collect() == []
    next_position = desk.counter(ledger.TAIL)
    positions = range(next_position - _NUM_CELLS, next_position)
    assert all(ring.read_ticket(desk.cell(p)) == (p << d.LOW_BITS | 1) for p in positions)
    forget(desk.books)
    assert desk.books.num_in_flight == desk.books.num_unfinished == 0
    assert all(ring.read_ticket(desk.cell(p)) == p << d.LOW_BITS for p in positions)
    words = desk.memory.memory.array(np.int64, (d.CONTROL_BYTES // 8,))
    assert words[d.OLDEST // 8] == next_position
    assert desk.collect() == []
    desk.books.add(0, [2], 0, 10, 1)
    desk.books.publish()
    desk.claim(next_position)
