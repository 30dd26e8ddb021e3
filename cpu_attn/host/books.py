"""Tasks in flight, as arrays: `ledger` with its memory, for one publisher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpu_attn.host import ledger, recovery
from cpu_attn.host import turns as t
from cpu_attn.host.descriptor import MAX_MODELS, HostStatus
from cpu_attn.host.settings import HostModel
from cpu_attn.host.slots import RingMemory, SlotArrays

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HostResults:
    """Tasks that ended, one row each, oldest first; int64."""

    model: _Ints
    slot: _Ints
    layer: _Ints
    status: _Ints
    """HostStatus; rows of SlotArrays.out and lse are meaningful where it is OK."""
    epoch: _Ints
    """Of the slot when the task was submitted, and still."""

    def __len__(self) -> int:
        return len(self.slot)

    @classmethod
    def none(cls) -> Self:
        return cls(*np.zeros((ledger.RESULT_FIELDS, 0), dtype=np.int64))


class TaskBooks:
    """Which slot has which task; for one thread at a time."""

    def __init__(self, num_slots: int, memory: RingMemory, num_workers: int) -> None:
        """Without a model; `num_slots` of each that comes."""
        # Zeros that nobody touched take no memory.
        num_tasks = MAX_MODELS * num_slots
        self.counters: _Ints = np.zeros(ledger.NUM_COUNTERS, dtype=np.int64)
        self.counters[[ledger.TAIL, ledger.OLDEST]] = 1
        self.turns: _Ints = np.zeros((MAX_MODELS, t.TURN_FIELDS), dtype=np.int64)
        self._num_slots = num_slots
        self._num_workers = num_workers
        self._ring = (memory.control, memory.cells, memory.mask)
        self._models: _Ints = np.zeros((MAX_MODELS, ledger.MODEL_FIELDS), dtype=np.int64)
        self._kept: dict[int, tuple[_Ints, SlotArrays]] = {}
        """Of each model, what its row has addresses of."""
        self._tasks: _Ints = np.zeros((num_tasks, ledger.TASK_FIELDS), dtype=np.int64)
        self._epochs: _Ints = np.zeros(num_tasks, dtype=np.int64)
        self._queues: _Ints = np.zeros((MAX_MODELS, num_slots), dtype=np.int64)
        self._cell_tasks: _Ints = np.full(memory.num_cells, -1, dtype=np.int64)
        self._requests: _Ints = np.zeros((num_slots, ledger.REQUEST_FIELDS), dtype=np.int64)
        self._results: _Ints = np.zeros((num_tasks, ledger.RESULT_FIELDS), dtype=np.int64)

    def add_model(self, index: int, model: HostModel, arrays: SlotArrays) -> None:
        """At a free index; its tasks wait until it is opened."""
        assert index not in self._kept
        layout = model.pool.layout
        layers = np.array(
            [(model.window(i), model.sink_tokens) for i in range(layout.num_layers)], dtype=np.int64
        )
        tables = arrays.block_tables
        self._kept[index] = (layers, arrays)
        self._of_model(self._epochs, index)[:] = 0
        self.turns[index] = 0
        self._models[index] = (
            *(layout.num_layers, model.max_q_len, model.max_blocks * layout.block_size),
            *(layers.ctypes.data, layout.block_size, model.pool.num_blocks),
            *(tables.ctypes.data, tables.strides[0]),
        )

    def set_open(self, model: int, is_open: bool) -> None:
        """Whether the model's tasks may be published, as the process knows it or not yet."""
        self.turns[model, t.IS_OPEN] = is_open

    def remove_model(self, model: int) -> None:
        """Raises ValueError where a slot is in flight."""
        num_busy = int(np.count_nonzero(self.in_flight(model)))
        if num_busy:
            raise ValueError(f"model {model} has tasks in flight in {num_busy} slots")
        self._models[model] = 0
        self.turns[model] = 0
        del self._kept[model]

    @property
    def num_in_flight(self) -> int:
        return sum(int(np.count_nonzero(self.in_flight(model))) for model in self._kept)

    @property
    def num_unfinished(self) -> int:
        """Published tasks that have no result yet."""
        _, cells, mask = self._ring
        return int(ledger.count_unfinished(cells, mask, self._cell_tasks, self.counters))

    def in_flight(self, model: int) -> NDArray[np.bool_]:
        busy: NDArray[np.bool_] = (
            self._of_model(self._tasks, model)[:, ledger.POSITION] != ledger.FREE
        )
        return busy

    def epochs(self, model: int) -> _Ints:
        return self._of_model(self._epochs, model).copy()

    def add(
        self,
        model: int,
        slots: ArrayLike,
        layers: ArrayLike,
        context_lens: ArrayLike,
        q_lens: ArrayLike,
    ) -> None:
        """Queues one task a slot, all or none; raises as HostAttention.submit_many does."""
        rows = _integers("slots", slots)
        count = len(rows) if rows.ndim == 1 else 1
        if rows.ndim > 1 or count > self._num_slots:
            raise ValueError(f"slots: shape {rows.shape}, up to {self._num_slots} of them allowed")
        requests = self._requests[:count]
        requests[:, ledger.REQUEST_SLOT] = rows
        for column, name, values in (
            (ledger.REQUEST_LAYER, "layers", layers),
            (ledger.REQUEST_CONTEXT_LEN, "context_lens", context_lens),
            (ledger.REQUEST_Q_LEN, "q_lens", q_lens),
        ):
            numbers = values if type(values) is int else _integers(name, values)
            if not isinstance(numbers, int) and numbers.shape not in ((), (count,)):
                raise ValueError(f"{name}: shape {numbers.shape}, one for each of {count} slots")
            requests[:, column] = numbers
        error = ledger.enqueue(
            model,
            count,
            requests,
            self._models,
            self._tasks,
            self._epochs,
            self.turns,
            self._queues,
            self.counters,
            self._num_workers,
        )
        if error:
            raise ValueError(self._explain(model, error))

    def publish(self) -> None:
        """Publishes what waits, as far as the ring has room; models take turns."""
        if self.counters[ledger.NUM_WAITING]:
            ledger.flush(
                *self._ring,
                self._tasks,
                self._epochs,
                self.turns,
                self._queues,
                self._cell_tasks,
                self.counters,
            )

    def collect(self) -> HostResults:
        """Results that came since; their slots are free."""
        count = ledger.gather(
            *self._ring,
            self._tasks,
            self._epochs,
            self.turns,
            self._cell_tasks,
            self.counters,
            self._results,
        )
        return _as_results(self._results[:count])

    def release(self, model: int, slots: ArrayLike) -> None:
        """What is in flight for the slots will be dropped when it comes."""
        rows = _integers("slots", slots)
        if rows.size and not (rows.min() >= 0 and rows.max() < self._num_slots):
            raise ValueError(f"slots: 0..{self._num_slots - 1} are allowed")
        self._of_model(self._epochs, model)[rows] += 1
        if self.turns[model, t.NUM_WAITING]:
            ledger.drop_released(
                model, self._tasks, self._epochs, self.turns, self._queues, self.counters
            )

    def recover(self, max_attempts: int) -> None:
        """See `recovery.recover`."""
        recovery.recover(
            *self._ring,
            self._tasks,
            self._epochs,
            self.turns,
            self._queues,
            self._cell_tasks,
            self.counters,
            max_attempts,
        )

    def abandon(self) -> HostResults:
        """All tasks in flight as CRASHED, in the order of slots; the process must be gone."""
        return self._crash(np.flatnonzero(self._tasks[:, ledger.POSITION]), self._free_all)

    def abandon_model(self, model: int) -> HostResults:
        """A closed model's tasks as CRASHED; none of them may be published."""
        first = model * self._num_slots
        lost = first + np.flatnonzero(self.in_flight(model))
        assert len(lost) == self.turns[model, t.NUM_WAITING], "tasks are published"
        return self._crash(lost, lambda: self._forget_waiting(model))

    def _forget_waiting(self, model: int) -> None:
        self._of_model(self._tasks, model)[:, ledger.POSITION] = ledger.FREE
        self.counters[ledger.NUM_WAITING] -= self.turns[model, t.NUM_WAITING]
        self.turns[model, t.NUM_WAITING] = 0

    def _crash(self, lost: NDArray[np.intp], free: Callable[[], None]) -> HostResults:
        wanted = lost[self._tasks[lost, ledger.EPOCH] == self._epochs[lost]]
        results = self._results[: len(wanted)]
        results[:, ledger.RESULT_MODEL] = wanted // self._num_slots
        results[:, ledger.RESULT_SLOT] = wanted % self._num_slots
        results[:, ledger.RESULT_LAYER] = self._tasks[wanted, ledger.LAYER]
        results[:, ledger.RESULT_STATUS] = HostStatus.CRASHED
        results[:, ledger.RESULT_EPOCH] = self._epochs[wanted]
        self.counters[[ledger.NUM_DONE, ledger.NUM_CRASHED]] += len(wanted)
        self.counters[ledger.NUM_DROPPED] += len(lost) - len(wanted)
        free()
        return _as_results(results)

    def drop_all(self) -> None:
        """Frees all slots without a result; the process must be gone."""
        self.counters[ledger.NUM_DROPPED] += self.num_in_flight
        self._free_all()

    def _free_all(self) -> None:
        self._tasks[:, ledger.POSITION] = ledger.FREE
        recovery.withdraw(*self._ring, self.turns, self._cell_tasks, self.counters)

    def _of_model(self, column: NDArray[Any], model: int) -> NDArray[Any]:
        return column[model * self._num_slots : (model + 1) * self._num_slots]

    def _explain(self, model: int, error: int) -> str:
        slot, layer, context_len, q_len = self._requests[error >> ledger.ERROR_BITS].tolist()
        limits = self._models[model]
        return {
            ledger.NO_SLOT: f"slots: {slot}, 0..{self._num_slots - 1} are allowed",
            ledger.SLOT_BUSY: f"slots: {slot} has a task in flight",
            ledger.NO_LAYER: f"layers: {layer}, 0..{limits[ledger.NUM_LAYERS] - 1} are allowed",
            ledger.WRONG_Q_LEN: f"q_lens: {q_len}, 1..{limits[ledger.MAX_Q_LEN]} are allowed",
            ledger.WRONG_CONTEXT_LEN: (
                f"context_lens: {context_len}, from q_len {q_len} to "
                f"{limits[ledger.MAX_TOKENS]} are allowed"
            ),
            ledger.NO_BLOCK: (
                f"context_lens: {context_len}, but the block table of slot {slot} has no blocks "
                f"for tokens {context_len - q_len}..{context_len - 1}: set_block_table comes first"
            ),
        }[error & ((1 << ledger.ERROR_BITS) - 1)]


def _as_results(rows: _Ints) -> HostResults:
    return HostResults(*rows.T.copy())


def _integers(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: {array.dtype}, integers are needed")
    # An empty list is one of floats to numpy.
    return array if array.size else array.astype(np.int64)
