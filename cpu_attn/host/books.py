"""Tasks in flight, as arrays: `ledger` with its memory, for one publisher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpu_attn.host import ledger
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.settings import HostModel
from cpu_attn.host.slots import HostMemory

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


class TaskBooks:
    """Which slot has which task; for one thread at a time."""

    def __init__(
        self, models: Sequence[HostModel], num_slots: int, memory: HostMemory, num_workers: int
    ) -> None:
        num_tasks = len(models) * num_slots
        self.counters: _Ints = np.zeros(ledger.NUM_COUNTERS, dtype=np.int64)
        self.counters[[ledger.TAIL, ledger.OLDEST]] = 1
        self._num_slots = num_slots
        self._num_workers = num_workers
        self._memory = memory
        self._ring = (memory.control, memory.cells, memory.mask)
        self._models, self._layers = _limits(models, memory)
        self._tasks: _Ints = np.zeros((num_tasks, ledger.TASK_FIELDS), dtype=np.int64)
        self._epochs: _Ints = np.zeros(num_tasks, dtype=np.int64)
        self._queue: _Ints = np.zeros(num_tasks, dtype=np.int64)
        self._cell_tasks: _Ints = np.full(memory.num_cells, -1, dtype=np.int64)
        self._requests: _Ints = np.zeros((num_tasks, ledger.REQUEST_FIELDS), dtype=np.int64)
        self._results: _Ints = np.zeros((num_tasks, ledger.RESULT_FIELDS), dtype=np.int64)

    @property
    def num_in_flight(self) -> int:
        return int(np.count_nonzero(self._tasks[:, ledger.POSITION]))

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
            self._layers,
            self._tasks,
            self._epochs,
            self._queue,
            self.counters,
            self._num_workers,
        )
        if error:
            raise ValueError(self._explain(model, error))

    def publish(self) -> None:
        """Publishes what waits, as far as the ring has room."""
        if self.counters[ledger.QUEUE_HEAD] < self.counters[ledger.QUEUE_TAIL]:
            ledger.flush(
                *self._ring,
                self._num_slots,
                self._tasks,
                self._epochs,
                self._queue,
                self._cell_tasks,
                self.counters,
            )

    def collect(self) -> HostResults:
        """Results that came since; their slots are free."""
        count = ledger.gather(
            *self._ring,
            self._num_slots,
            self._tasks,
            self._epochs,
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

    def recover(self, max_attempts: int) -> None:
        """See `ledger.recover`."""
        ledger.recover(
            *self._ring,
            self._tasks,
            self._epochs,
            self._queue,
            self._cell_tasks,
            self.counters,
            max_attempts,
        )

    def abandon(self) -> HostResults:
        """All tasks in flight as CRASHED, in the order of slots; the process must be gone."""
        lost = np.flatnonzero(self._tasks[:, ledger.POSITION])
        wanted = lost[self._tasks[lost, ledger.EPOCH] == self._epochs[lost]]
        results = self._results[: len(wanted)]
        results[:, ledger.RESULT_MODEL] = wanted // self._num_slots
        results[:, ledger.RESULT_SLOT] = wanted % self._num_slots
        results[:, ledger.RESULT_LAYER] = self._tasks[wanted, ledger.LAYER]
        results[:, ledger.RESULT_STATUS] = HostStatus.CRASHED
        results[:, ledger.RESULT_EPOCH] = self._epochs[wanted]
        self.counters[[ledger.NUM_DONE, ledger.NUM_CRASHED]] += len(wanted)
        self._free_all(num_dropped=len(lost) - len(wanted))
        return _as_results(results)

    def drop_all(self) -> None:
        """Frees all slots without a result; the process must be gone."""
        self._free_all(num_dropped=self.num_in_flight)

    def _free_all(self, *, num_dropped: int) -> None:
        self._tasks[:, ledger.POSITION] = ledger.FREE
        ledger.withdraw(*self._ring, self._cell_tasks, self.counters)
        self.counters[ledger.NUM_DROPPED] += num_dropped

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


def _limits(models: Sequence[HostModel], memory: HostMemory) -> tuple[_Ints, _Ints]:
    rows: list[tuple[int, ...]] = []
    layers: list[tuple[int, int]] = []
    for model, arrays in zip(models, memory.slots, strict=True):
        layout = model.pool.layout
        max_tokens = model.max_blocks * layout.block_size
        tables = arrays.block_tables
        rows.append(
            (
                *(layout.num_layers, model.max_q_len, max_tokens, len(layers)),
                *(layout.block_size, model.pool.num_blocks),
                *(tables.ctypes.data, tables.strides[0]),
            )
        )
        layers += [(model.window(i), model.sink_tokens) for i in range(layout.num_layers)]
    return np.array(rows, dtype=np.int64), np.array(layers, dtype=np.int64)
