"""Decode attention in a process of its own, as its users see it."""

import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpu_attn.host import ledger
from cpu_attn.host.block_tables import BlockTables
from cpu_attn.host.books import HostResults, TaskBooks
from cpu_attn.host.child import HostChild
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.ring import read_progress
from cpu_attn.host.settings import HostModel, HostSettings
from cpu_attn.host.slots import HostMemory, SlotArrays
from cpu_attn.host.supervisor import State, Supervisor

_LOOK_S = 0.05
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class HostCounters:
    """Since the start, all of them growing."""

    num_done: int
    """Results that were collected, those with an error among them."""
    num_dropped: int
    """Tasks without a result: of slots that were released, and in flight at `stop`."""
    num_redone: int
    """Tasks that were published again after a death."""
    num_crashed: int
    """Results that were CRASHED."""
    num_restarts: int


class HostAttention:
    """Request slots whose tasks run in a child process; for one thread at a time.

    To run a task: set the slot's block table, write its row of q, k and v, then submit. The child
    appends k and v at the last q_len positions of the context, attends, and writes out and lse,
    which are there once `collect` returns the slot. While a slot is `in_flight` its row belongs to
    the child, and so do the blocks of its table: they may be freed once it is not. The pools stay
    open until `stop` or `close`.

    The thread that calls start, collect and supervise must live as long as the child is to: the
    system ends a child with the thread that started it.
    """

    def __init__(
        self,
        models: Sequence[HostModel],
        settings: HostSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Maps memory.

        Raises ValueError without models and where a pool is closed, OSError where there is too
        little memory.
        """
        if not models:
            raise ValueError("models: at least one is needed")
        self._models = tuple(models)
        self._settings = settings
        self._clock = clock
        self._require_open_pools(ValueError)
        self._memory = HostMemory.create(self._models, settings.num_slots)
        self._books = TaskBooks(self._models, settings.num_slots, self._memory, len(settings.cores))
        self._tables = BlockTables(self._models, self._memory.slots)
        self._supervisor = Supervisor(
            self._spawn,
            self._recover,
            stall_timeout_s=settings.stall_timeout_s,
            start_timeout_s=settings.start_timeout_s,
            max_restarts=settings.max_restarts,
        )
        self._next_look_s = 0.0
        self._abandoned = False

    @property
    def slots(self) -> tuple[SlotArrays, ...]:
        """Payloads and results, one a model."""
        return self._memory.slots

    @property
    def state(self) -> State:
        """As `supervise` last found it."""
        return self._supervisor.state

    @property
    def reason(self) -> str:
        """Why there is no process, or was none the last time."""
        return self._supervisor.reason

    @property
    def pid(self) -> int | None:
        """Process id of the child, where there is one."""
        child = self._supervisor.child
        return None if child is None else child.pid

    @property
    def num_in_flight(self) -> int:
        return self._books.num_in_flight

    @property
    def counters(self) -> HostCounters:
        done, dropped, redone, crashed = self._books.counters[ledger.NUM_DONE :].tolist()
        return HostCounters(done, dropped, redone, crashed, self._supervisor.num_restarts)

    def in_flight(self, model: int) -> NDArray[np.bool_]:
        """[num_slots], new: slots whose row must not be written, and that take no task.

        A released slot stays in flight until its task came back or the process is gone.
        """
        return self._books.in_flight(self._model(model))

    def epochs(self, model: int) -> NDArray[np.int64]:
        """[num_slots], new: how often each slot was released."""
        return self._books.epochs(self._model(model))

    def begin_start(self) -> None:
        """Starts the child and returns at once; tasks wait until it is ready, its kernels compiled.

        Raises RuntimeError where it is started already, ValueError where a pool is closed.
        """
        if self.state != "stopped":
            raise RuntimeError(f"start: it is {self.state} already")
        self._require_open_pools(ValueError)
        self._abandoned = False
        self._supervisor.start(self._clock())

    def start(self) -> None:
        """Starts the child and returns when it is ready.

        Raises as `begin_start` does, and HostAttentionDown with the child's own words where it does
        not get ready; it is stopped then.
        """
        self.begin_start()
        while (state := self.supervise()) == "starting":
            time.sleep(_POLL_S)
        if state != "ready":
            reason = self.reason
            self.stop(0.0)
            raise HostAttentionDown(f"the host attention process did not start: {reason}")

    def set_block_table(self, model: int, slot: int, block_ids: ArrayLike, first: int = 0) -> None:
        """Writes a slot's block table from entry `first` on; all behind it become -1, not set.

        block_ids: integers [n]; entry i has tokens i * block_size on. Raises ValueError for blocks
        outside the pool, too many of them, and a slot in flight, TypeError where they are no
        integers.
        """
        in_flight = self._books.in_flight(self._model(model))
        if not 0 <= operator.index(slot) < len(in_flight):
            raise ValueError(f"slot {slot}: 0..{len(in_flight) - 1} are allowed")
        if in_flight[slot]:
            raise ValueError(f"slot {slot} has a task in flight")
        self._tables.set(model, slot, block_ids, first)

    def submit(self, model: int, slot: int, layer: int, context_len: int, q_len: int = 1) -> None:
        """`submit_many` for one slot."""
        self.submit_many(model, [slot], layer, context_len, q_len)

    def submit_many(
        self,
        model: int,
        slots: ArrayLike,
        layers: ArrayLike,
        context_lens: ArrayLike,
        q_lens: ArrayLike = 1,
    ) -> None:
        """One task for each of the slots, whose rows are written: all of them, or none.

        slots: integers [n]; the others [n] or one for all. context_lens count the query tokens.
        Raises ValueError naming the first that is not allowed, TypeError where they are no
        integers, HostAttentionDown where nobody will do them. During a restart tasks wait.

        Of a slot's block table this looks at the entries of the query tokens; where another one
        that is read was not set, the task ends as BAD_BLOCK.
        """
        if self.state in ("failed", "stopped"):
            raise HostAttentionDown(self._why_down())
        self._books.add(self._model(model), slots, layers, context_lens, q_lens)
        self._publish()

    def collect(self) -> HostResults:
        """Tasks that ended since; never waits. Supervises now and then.

        Once the process was given up, all that was in flight comes back as CRASHED.
        """
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self.supervise()
        results = self._books.collect()
        self._publish()
        if self.state == "failed" and not self._abandoned and not len(results):
            self._abandoned = True
            results = self._books.abandon()
            self._clear_tables()
        return results

    def release(self, model: int, slots: ArrayLike) -> None:
        """Results of tasks that the slots have in flight will be dropped; epochs go up by one.

        Their block tables are cleared, at once or when the task in flight came back.
        """
        self._books.release(self._model(model), slots)
        self._tables.release(model, slots)
        self._clear_tables()

    def supervise(self) -> State:
        """Notices a child that died or is stuck, and starts another one; never waits."""
        now_s = self._clock()
        self._next_look_s = now_s + _LOOK_S
        return self._supervisor.look(
            now_s,
            has_work=self._books.num_unfinished > 0,
            progress=read_progress(self._memory.control),
        )

    def stop(self, grace_s: float = 5.0) -> None:
        """Ends the child; tasks in flight are dropped and their slots are free."""
        self._supervisor.stop(grace_s)
        self._books.drop_all()
        self._clear_tables()

    def close(self) -> None:
        """Stops it and gives the memory back; arrays of it stay valid."""
        self.stop()
        self._memory.memory.close()

    def _spawn(self) -> HostChild:
        # As when there is no memory: a restart that cannot be made counts as a death.
        self._require_open_pools(OSError)
        return HostChild(self._settings, self._models, self._memory.memory.fd)

    def _recover(self) -> None:
        self._books.recover(self._settings.max_attempts)
        self._publish()

    def _publish(self) -> None:
        self._books.publish()
        self._clear_tables()

    def _clear_tables(self) -> None:
        self._tables.clear_free(self._books.in_flight)

    def _require_open_pools(self, error: type[Exception]) -> None:
        for index, model in enumerate(self._models):
            if not model.pool.is_open:
                raise error(f"models[{index}].pool: the pool is closed")

    def _model(self, model: int) -> int:
        if not 0 <= operator.index(model) < len(self._models):
            raise ValueError(f"model {model}: 0..{len(self._models) - 1} are allowed")
        return model

    def _why_down(self) -> str:
        return f"the host attention process is {self.state}: {self.reason}"
