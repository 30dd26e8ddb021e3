"""Models take turns by the tokens that they attend to; workers are played by the test."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from host_attention_builders import make_model, open_books
from host_pool_builders import make_pool

from cpu_attn.host import descriptor as d
from cpu_attn.host import ring
from cpu_attn.host.books import TaskBooks
from cpu_attn.host.slots import ModelMemory, RingMemory

_NUM_SLOTS = 64
_LONG, _SHORT = 1000, 10


@dataclass
class Bench:
    """Books of three models, and one worker that does one task after the other."""

    memory: RingMemory
    books: TaskBooks
    position: int = 1

    def submit(self, model: int, slots: range, context_len: int) -> None:
        self.books.add(model, np.array(slots), 0, context_len, 1)
        self.books.publish()

    def begin(self) -> tuple[int, int]:
        """(model, position) of the next task, which is claimed; skips what was taken back."""
        while True:
            cell = ring.cell_of(self.memory.cells, self.memory.mask, self.position)
            ticket = ring.read_ticket(cell)
            assert ticket >> d.LOW_BITS == self.position, "there is no work"
            if ticket & d.LOW_MASK:
                assert ring.claim(cell, ticket)
                words = self.memory.memory.array(np.int64, (self.memory.memory.num_bytes // 8,))
                model = int(words[(cell - self.memory.control) // 8 + d.MODEL])
                self.position += 1
                return model, self.position - 1
            self.position += 1

    def end(self, position: int) -> None:
        ring.publish_result(ring.cell_of(self.memory.cells, self.memory.mask, position), position)
        ring.count_progress(self.memory.control)
        assert len(self.books.collect()) == 1
        self.books.publish()

    def work(self, count: int) -> list[int]:
        """Models of the next tasks, done one by one."""
        models = []
        for _ in range(count):
            model, position = self.begin()
            self.end(position)
            models.append(model)
        return models


@pytest.fixture
def bench() -> Iterator[Bench]:
    pool = make_pool(num_blocks=1)
    models = [make_model(pool, max_context_len=1024) for _ in range(3)]
    memory = RingMemory.create(_NUM_SLOTS)
    slots = [ModelMemory.create(model, _NUM_SLOTS) for model in models]
    yield Bench(memory, open_books(models, _NUM_SLOTS, memory, slots, 1))
    for shared in (memory.memory, *(each.memory for each in slots)):
        shared.close()
    pool.close()


def test_a_task_that_comes_behind_a_flood_waits_for_what_is_being_done_only(bench: Bench) -> None:
    bench.submit(0, range(50), _LONG)
    assert bench.work(3) == [0, 0, 0]
    model, position = bench.begin()
    assert model == 0
    bench.submit(1, range(1), _SHORT)
    bench.end(position)
    assert bench.work(4) == [1, 0, 0, 0]
    assert bench.books.num_in_flight == 43


def test_short_tasks_get_as_many_tokens_as_long_ones_not_as_many_turns(bench: Bench) -> None:
    bench.submit(0, range(50), _LONG)
    bench.work(1)
    bench.submit(1, range(60), 100)
    order = bench.work(40)
    # A long task is followed by ten short ones.
    longs = [place for place, model in enumerate(order) if model == 0]
    assert 3 <= len(longs) <= 5
    assert max(np.diff(longs)) <= 11


def test_three_models_with_equal_tasks_take_turns(bench: Bench) -> None:
    for model in range(3):
        bench.submit(model, range(20), _LONG)
    order = bench.work(30)
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(3, 30, 3))


def test_nobody_keeps_credit_of_a_time_without_work(bench: Bench) -> None:
    bench.submit(1, range(1), _SHORT)
    bench.work(1)
    for _ in range(4):
        bench.submit(0, range(50), _LONG)
        bench.work(50)
    bench.submit(1, range(50), _LONG)
    bench.submit(0, range(50), _LONG)
    order = bench.work(20)
    assert abs(order.count(0) - order.count(1)) <= 1


def test_who_has_a_task_at_all_times_keeps_no_credit_either(bench: Bench) -> None:
    bench.submit(0, range(50), _LONG)
    for i in range(40):
        # One short task of model 1 for each long one, published as soon as it is there.
        bench.submit(1, range(i, i + 1), _SHORT)
        assert sorted(bench.work(2)) == [0, 1]
    bench.submit(0, range(40), _LONG)
    bench.submit(1, range(40), _LONG)
    assert 8 <= bench.work(20).count(0) <= 12


def test_a_closed_model_holds_up_nobody(bench: Bench) -> None:
    bench.books.set_open(2, False)
    bench.submit(2, range(5), _SHORT)
    bench.submit(0, range(3), _LONG)
    assert bench.work(3) == [0, 0, 0]
    assert bench.books.in_flight(2).sum() == 5
    bench.books.release(2, range(2))
    assert bench.books.in_flight(2).sum() == 3
    bench.books.set_open(2, True)
    bench.books.publish()
    assert bench.work(3) == [2, 2, 2]
    assert bench.books.num_in_flight == 0


def test_a_full_ring_takes_nothing_back_that_it_could_not_publish_again(bench: Bench) -> None:
    bench.submit(0, range(_NUM_SLOTS), _LONG)
    _, first = bench.begin()
    for _ in range(20):
        # The oldest task takes long: nothing before it is free again.
        bench.submit(1, range(1), _SHORT)
        model, position = bench.begin()
        bench.end(position)
        if model == 0:
            break
    assert bench.books.num_unfinished > 0, "workers are out of work"
    bench.end(first)
    remaining = bench.books.num_in_flight
    assert len(bench.work(remaining)) == remaining


def test_a_model_with_tasks_in_flight_is_not_removed(bench: Bench) -> None:
    bench.submit(1, range(2), _SHORT)
    with pytest.raises(ValueError, match="model 1 has tasks in flight in 2 slots"):
        bench.books.remove_model(1)
    bench.work(2)
    bench.books.remove_model(1)
    bench.submit(0, range(1), _SHORT)
    assert bench.work(1) == [0]
