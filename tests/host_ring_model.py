"""The ring's publisher and workers as step-by-step actors, and a model of what must come of them.

Each step of a worker is one atomic access or one access to a task's payload, so that steps of
several workers and of the publisher can be taken in any order. Sleeping is a model of a futex.
"""

from collections.abc import Generator
from dataclasses import replace

import numpy as np
from host_attention_builders import make_model, open_books
from host_pool_builders import make_pool

from cpu_attn.host import descriptor as d
from cpu_attn.host import ring
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.slots import ModelMemory, RingMemory

NUM_SLOTS = 4
NUM_MODELS = 2
"""Who take turns, so that tasks are called back; slots are numbered over both."""
NUM_CELLS = 8
CONTEXT_LENS = (16, 2048, 3072)
"""Cut into 1, 2 and 3 parts."""
MAX_ATTEMPTS = 1000

Steps = Generator[None, None, None]


class Worker:
    """`worker.serve`, one step at a time; subclasses are broken on purpose."""

    def __init__(self, world: "RingWorld") -> None:
        self.world = world
        self.asleep = False
        self.steps = self._serve()

    def _serve(self) -> Steps:
        world = self.world
        control, cells, mask = world.control, world.memory.cells, world.memory.mask
        position = world.word(control + d.OLDEST)
        while True:
            cell = ring.cell_of(cells, mask, position)
            ticket = ring.read_ticket(cell)
            yield
            published = ticket >> d.LOW_BITS
            if published < position:
                yield from self._sleep(cell, position)
                position = max(position, world.word(control + d.OLDEST))
            elif published > position:
                position = max(position + 1, world.word(control + d.OLDEST))
            elif ticket & d.LOW_MASK == 0:
                position += 1
            elif self.claim(cell, ticket):
                yield
                yield from self._run_part(cell, ticket)

    def _run_part(self, cell: int, ticket: int) -> Steps:
        world = self.world
        slot = world.word(cell + 8 * d.MODEL) * NUM_SLOTS + world.word(cell + 8 * d.SLOT)
        payload = world.payload(slot)
        part = world.word(cell + 8 * d.NUM_PARTS) - (ticket & d.LOW_MASK)
        world.note_part(slot, payload, part)
        yield
        assert world.payload(slot) == payload, "the payload changed under a worker"
        is_last = self.end_part(cell)
        yield
        if is_last:
            yield from self.finish_task(cell, ticket >> d.LOW_BITS, slot, payload)
        self.count_progress()
        yield

    def _sleep(self, cell: int, position: int) -> Steps:
        sequence = ring.announce_sleep(self.world.control)
        yield
        if self.still_nothing(cell, position):
            yield
            # What the system does at once: it compares, and puts the thread into the queue.
            self.asleep = self.world.wake_sequence() == sequence
            while self.asleep:
                yield
        ring.end_sleep(self.world.control)
        yield

    def claim(self, cell: int, ticket: int) -> bool:
        return bool(ring.claim(cell, ticket))

    def end_part(self, cell: int) -> bool:
        """Whether it was the last, as the kernel does it."""
        return bool(ring.fail_part(cell, HostStatus.OK))

    def finish_task(self, cell: int, position: int, slot: int, payload: int) -> Steps:
        self.world.write_result(slot, payload)
        yield
        ring.publish_result(cell, position)
        yield

    def count_progress(self) -> None:
        ring.count_progress(self.world.control)

    def still_nothing(self, cell: int, position: int) -> bool:
        return bool(ring.read_ticket(cell) >> d.LOW_BITS < position)


class RingWorld:
    """Real books and a real ring, model workers, and what is known about every task."""

    def __init__(self, num_workers: int, worker_class: type[Worker] = Worker) -> None:
        self._pool = make_pool(num_blocks=1)
        models = [make_model(self._pool, max_context_len=max(CONTEXT_LENS))] * NUM_MODELS
        self.memory = replace(RingMemory.create(NUM_SLOTS), num_cells=NUM_CELLS)
        self.control = self.memory.control
        self._models = [ModelMemory.create(model, NUM_SLOTS) for model in models]
        self.books = open_books(models, NUM_SLOTS, self.memory, self._models, num_workers=3)
        self._words = self.memory.memory.array(np.int64, (self.memory.memory.num_bytes // 8,))
        self._worker_class = worker_class
        self.workers = [worker_class(self) for _ in range(num_workers)]
        self._next_payload = 1
        self.owed: dict[int, int] = {}
        """Payload by slot of tasks whose result must come."""
        self._parts: set[tuple[int, int]] = set()
        """(payload, part) that were run since the last death."""
        self.num_results = 0

    def close(self) -> None:
        self._pool.close()
        for model in self._models:
            model.memory.close()
        self.memory.memory.close()

    def word(self, address: int) -> int:
        return int(self._words[(address - self.control) // 8])

    def wake_sequence(self) -> int:
        return self.word(self.control + d.WAKE) & 0xFFFFFFFF

    def payload(self, slot: int) -> int:
        model, row = divmod(slot, NUM_SLOTS)
        return int(self._models[model].slots.q[row, 0, 0, 0])

    def write_result(self, slot: int, payload: int) -> None:
        model, row = divmod(slot, NUM_SLOTS)
        self._models[model].slots.out[row, 0, 0, 0] = payload

    def note_part(self, slot: int, payload: int, part: int) -> None:
        assert (payload, part) not in self._parts, "a part was run twice"
        self._parts.add((payload, part))

    def act(self, choice: int) -> None:
        """One of all things that may happen next; `choice` is any number up to 255."""
        kind, rest = choice % 16, choice // 16
        if kind < 10:
            next(self.workers[choice % len(self.workers)].steps)
        elif kind < 12:
            self._submit(rest)
        elif kind < 14:
            self._collect()
        elif kind == 14:
            slot = rest % (NUM_MODELS * NUM_SLOTS)
            self.books.release(*divmod(slot, NUM_SLOTS))
            self.owed.pop(slot, None)
        elif rest % 4 == 0:
            self._die()

    def finish(self) -> None:
        """With no more tasks and all workers going on until they sleep, every result comes."""
        for _ in range(4):
            for _ in range(300):
                for worker in self.workers:
                    next(worker.steps)
            self._collect()
        assert not self.owed, "results were lost"
        assert self.books.num_in_flight == 0, "slots stayed in flight"
        assert all(worker.asleep for worker in self.workers), "workers have found something else"

    def _submit(self, rest: int) -> None:
        model = rest // 3 % NUM_MODELS
        free = np.flatnonzero(~self.books.in_flight(model))[: 1 + rest % 3]
        for slot in free.tolist():
            self._models[model].slots.q[slot] = self._next_payload
            self.owed[model * NUM_SLOTS + slot] = self._next_payload
            self._next_payload += 1
        lengths = [CONTEXT_LENS[(rest + int(slot)) % 3] for slot in free]
        self.books.add(model, free, 0, lengths, 1)
        self._publish()

    def _publish(self) -> None:
        before = self.wake_sequence()
        self.books.publish()
        if self.wake_sequence() != before:
            # At least one of those that sleep, as many as there are parts; never more is relied on.
            sleeping = [worker for worker in self.workers if worker.asleep]
            for worker in sleeping[:1]:
                worker.asleep = False

    def _collect(self) -> None:
        results = self.books.collect()
        slots = results.model * NUM_SLOTS + results.slot
        for slot, status in zip(slots.tolist(), results.status.tolist(), strict=True):
            assert status == HostStatus.OK
            model, row = divmod(slot, NUM_SLOTS)
            payload = self.owed.pop(slot, None)
            assert payload is not None, "a result came twice, or of a released slot"
            assert self._models[model].slots.out[row, 0, 0, 0] == payload, (
                "the result of another task"
            )
            self.num_results += 1
        self._publish()

    def _die(self) -> None:
        self.books.recover(MAX_ATTEMPTS)
        self._parts.clear()
        self.workers = [self._worker_class(self) for _ in self.workers]
        self._publish()
