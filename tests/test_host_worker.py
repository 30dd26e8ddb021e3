"""Workers in this process: descriptors that lie, and real threads over one ring."""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from host_attention_builders import make_model, open_books
from host_pool_builders import make_pool
from numba import types
from numpy.typing import NDArray

from cpu_attn._jit import c_callback
from cpu_attn.host import descriptor as d
from cpu_attn.host import ring, worker
from cpu_attn.host.books import TaskBooks
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel
from cpu_attn.host.slots import ModelMemory, RingMemory
from cpu_attn.host.tables import WorkerTables

_NUM_SLOTS = 8
_NUM_WORKERS = 3
_NUM_TASKS = 6000


@dataclass(frozen=True)
class Place:
    """All that workers and their publisher need."""

    pool: HostKvPool
    models: list[HostModel]
    memory: RingMemory
    model: ModelMemory
    tables: WorkerTables
    words: NDArray[np.int64]
    """Of the shared memory."""

    def cell_words(self, position: int) -> NDArray[np.int64]:
        first = (d.CONTROL_BYTES + (position & self.memory.mask) * d.CELL_BYTES) // 8
        return self.words[first : first + d.CELL_WORDS]


@pytest.fixture
def place() -> Iterator[Place]:
    pool = make_pool(num_blocks=_NUM_SLOTS * 260, head_dim=64, num_layers=1)
    models = [make_model(pool, max_context_len=4096, max_q_len=2, windows=(None,), sink_tokens=0)]
    memory = RingMemory.create(_NUM_SLOTS)
    model = ModelMemory.create(models[0], _NUM_SLOTS)
    tables = WorkerTables(num_workers=_NUM_WORKERS)
    tables.add(0, models[0], model, os.dup(pool.fd))
    words = memory.memory.array(np.int64, (memory.memory.num_bytes // 8,))
    for slot in range(_NUM_SLOTS):
        model.slots.block_tables[slot] = pool.allocate(256)
    yield Place(pool, models, memory, model, tables, words)
    tables.remove(0)
    memory.memory.close()
    pool.close()


def _run_all_parts(place: Place, num_parts: int, **fields: int) -> int:
    """The status of a task of these fields, run part by part."""
    values = {"model": 0, "slot": 1, "layer": 0, "context_len": 100, "q_len": 1} | fields
    position = ring.read_progress(place.memory.control) + 1
    cell = ring.cell_of(place.memory.cells, place.memory.mask, position)
    names = ["model", "slot", "layer", "context_len", "q_len"]
    place.cell_words(position)[d.MODEL : d.Q_LEN + 1] = [values[name] for name in names]
    ring.publish(cell, position, num_parts)
    scratch = np.zeros(worker.SCRATCH_WORDS, dtype=np.int64)
    for left in range(num_parts, 0, -1):
        assert ring.read_result(cell, position) == -1
        ticket = ring.read_ticket(cell)
        assert ticket & d.LOW_MASK == left
        assert ring.claim(cell, ticket)
        control, tables = place.memory.control, place.tables
        worker.run_part(control, cell, ticket, tables.models, scratch)
    assert ring.read_progress(place.memory.control) == position - 1 + num_parts
    return int(ring.read_result(cell, position))


_HUGE = 1 << 62


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, HostStatus.OK),
        ({"model": 1}, HostStatus.BAD_MODEL),
        ({"model": -1}, HostStatus.BAD_MODEL),
        ({"slot": _NUM_SLOTS}, HostStatus.BAD_SLOT),
        ({"slot": -_HUGE}, HostStatus.BAD_SLOT),
        ({"layer": 1}, HostStatus.BAD_LAYER),
        ({"layer": -1}, HostStatus.BAD_LAYER),
        ({"q_len": 0}, HostStatus.BAD_Q_LEN),
        ({"q_len": 3}, HostStatus.BAD_Q_LEN),
        ({"context_len": 0}, HostStatus.BAD_CONTEXT_LEN),
        ({"context_len": 1, "q_len": 2}, HostStatus.BAD_CONTEXT_LEN),
        ({"context_len": 4097}, HostStatus.BAD_CONTEXT_LEN),
        ({"context_len": _HUGE}, HostStatus.BAD_CONTEXT_LEN),
    ],
)
def test_descriptors_are_checked(place: Place, fields: dict[str, int], status: HostStatus) -> None:
    for num_parts in (1, 2):
        assert _run_all_parts(place, num_parts, **fields) == status


def test_a_model_that_is_gone_is_not_touched(place: Place) -> None:
    assert _run_all_parts(place, 1) == HostStatus.OK
    place.tables.remove(0)
    # A worker that did not look at the state would read an address of nothing.
    assert not place.tables.models.any()
    assert _run_all_parts(place, 2) == HostStatus.BAD_MODEL
    place.tables.add(0, place.models[0], place.model, os.dup(place.pool.fd))


def test_memory_stays_mapped_until_workers_have_ended_what_they_are_at(place: Place) -> None:
    """Three workers: one at a part of the model, one that begins another meanwhile, one idle."""
    scratches = [np.zeros(worker.SCRATCH_WORDS, dtype=np.int64) for _ in range(3)]
    place.tables.scratches += scratches
    scratches[0][worker.BUSY] = scratches[1][worker.BUSY] = 1
    remover = threading.Thread(target=place.tables.remove, args=(0,))
    remover.start()
    while place.tables.models[0, worker.STATE] == worker.PRESENT:
        time.sleep(1e-4)
    assert 0 in place.tables
    scratches[0][worker.BUSY] = 2
    time.sleep(0.01)
    assert 0 in place.tables
    assert place.tables.models[0, worker.KERNEL] != 0
    scratches[1][worker.BUSY] = 3
    remover.join(60.0)
    assert 0 not in place.tables
    scratches[1][worker.BUSY] = 4
    place.tables.add(0, place.models[0], place.model, os.dup(place.pool.fd))


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_all_parts_of_a_bad_task_end_in_one_answer(place: Place, num_parts: int) -> None:
    place.model.slots.block_tables[1, 200] = place.pool.num_blocks
    status = _run_all_parts(place, num_parts, context_len=201 * 16)
    assert status == HostStatus.BAD_BLOCK


def test_blocks_that_nobody_sees_are_not_looked_at(place: Place) -> None:
    place.model.slots.block_tables[1, 7:] = -1
    assert _run_all_parts(place, 1, context_len=7 * 16) == HostStatus.OK


def test_more_parts_than_there_are_tiles_or_room_for_are_refused(place: Place) -> None:
    assert _run_all_parts(place, 3, context_len=128) == HostStatus.BAD_PARTS
    assert _run_all_parts(place, _NUM_WORKERS + 1, context_len=4096) == HostStatus.OK
    assert _run_all_parts(place, _NUM_WORKERS + 2, context_len=4096) == HostStatus.BAD_PARTS


@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_kernel_that_gives_up_ends_its_task(place: Place, num_parts: int) -> None:
    give_up = c_callback(types.void(types.CPointer(types.int64)))(lambda task: None)
    place.tables.models[0, worker.KERNEL] = give_up.address
    status = _run_all_parts(place, num_parts, context_len=4000)
    assert status == HostStatus.NO_MEMORY


def _open_books(place: Place, num_workers: int) -> TaskBooks:
    return open_books(place.models, _NUM_SLOTS, place.memory, [place.model], num_workers)


@contextmanager
def _serving(place: Place, num_workers: int, spin_ns: int) -> Iterator[None]:
    memory, tables = place.memory, place.tables
    ring_place = (memory.control, memory.cells, memory.mask)
    threads = []
    for _ in range(num_workers):
        scratch = np.zeros(worker.SCRATCH_WORDS, dtype=np.int64)
        arguments = (*ring_place, tables.models, scratch, spin_ns)
        threads.append(threading.Thread(target=worker.serve, args=arguments))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ring.request_stop(memory.control)
        for thread in threads:
            thread.join()


def test_threads_over_one_ring_do_every_task_once(place: Place) -> None:
    """More workers than cores, spinning little, so that they sleep and are preempted anywhere."""
    books = _open_books(place, _NUM_WORKERS)
    rng = np.random.default_rng(10)
    arrays = place.model.slots
    # Zero queries and keys weigh all tokens alike, so the output is the mean of the values.
    values = np.zeros((_NUM_SLOTS, 4096))
    lengths = np.zeros(_NUM_SLOTS, dtype=np.int64)
    num_sent = num_done = 0
    with _serving(place, _NUM_WORKERS, spin_ns=20_000):
        while num_sent < _NUM_TASKS or num_done < num_sent:
            free = np.flatnonzero(~books.in_flight(0))
            if len(free) and num_sent < _NUM_TASKS:
                new = num_sent + 1.0 + free
                num_sent += len(free)
                lengths[free] = rng.choice([1, 1, 1, 2048, 4096], size=len(free))
                values[free, lengths[free] - 1] = new
                arrays.v[free, 0] = new[:, None, None]
                books.add(0, free, 0, lengths[free], 1)
                books.publish()
            results = books.collect()
            books.publish()
            num_done += len(results)
            assert not results.status.any()
            for slot in results.slot.tolist():
                mean = values[slot, : lengths[slot]].mean()
                np.testing.assert_allclose(arrays.out[slot, 0], mean, rtol=1e-5)
                np.testing.assert_allclose(arrays.lse[slot, 0], np.log(lengths[slot]), rtol=1e-5)
                arrays.out[slot, 0] = np.nan
    assert books.num_in_flight == 0


def test_a_worker_that_is_falling_asleep_misses_nothing(place: Place) -> None:
    books = _open_books(place, 1)
    draw = random.Random(11)
    with _serving(place, 1, spin_ns=10_000):
        for _ in range(4 * _NUM_TASKS):
            # About as long as it takes to fall asleep, so that tasks come just then.
            delay_until_ns = time.perf_counter_ns() + draw.randrange(20_000)
            while time.perf_counter_ns() < delay_until_ns:
                pass
            books.add(0, [0], 0, 1, 1)
            books.publish()
            deadline_s = time.monotonic() + 60.0
            while not len(books.collect()):
                assert time.monotonic() < deadline_s, "nobody woke up"
    assert place.words[d.WAKE // 8] & 0xFFFFFFFF > _NUM_TASKS // 100
