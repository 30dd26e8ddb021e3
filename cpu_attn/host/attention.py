"""Decode attention in a process of its own, as its users see it."""

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpu_attn.host import ledger
from cpu_attn.host.added_models import AddedModels
from cpu_attn.host.block_tables import BlockTables
from cpu_attn.host.books import HostResults, TaskBooks
from cpu_attn.host.child import HostChild
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.ring import read_progress
from cpu_attn.host.settings import HostModel, HostSettings
from cpu_attn.host.slots import RingMemory, SlotArrays
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
    the child, and so do the blocks of its table: they may be freed once it is not. The pool of a
    model stays open until the model is removed, or `stop` or `close`.

    Models come and go at any time (`add_model`, `remove_model`), also while the child runs or is
    being started anew; tasks of others go on. Tasks of a model that the child does not have yet
    wait. Models whose tasks wait take turns by the tokens that their tasks attend to.

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
        """Maps memory; `models` are those of the first indices.

        Raises ValueError where a pool is closed, OSError where there is too little memory.
        """
        self._settings = settings
        self._clock = clock
        self._ring = RingMemory.create(settings.num_slots)
        self._books = TaskBooks(settings.num_slots, self._ring, len(settings.cores))
        self._tables = BlockTables()
        self._models = AddedModels(settings.num_slots)
        self._supervisor = Supervisor(
            self._spawn,
            self._recover,
            stall_timeout_s=settings.stall_timeout_s,
            start_timeout_s=settings.start_timeout_s,
            max_restarts=settings.max_restarts,
        )
        self._next_look_s = 0.0
        self._abandoned = False
        for model in models:
            self.add_model(model)

    def add_model(self, model: HostModel) -> int:
        """Its index: the lowest that is free. It is ready once the child has compiled its kernel.

        Never waits. Raises ValueError where the pool is closed or there are too many models,
        OSError where there is too little memory; then nothing has changed.
        """
        if not model.pool.is_open:
            raise ValueError(f"models[{self._models.free_index}].pool: the pool is closed")
        added = self._models.add(model)
        self._books.add_model(added.index, model, added.memory.slots)
        self._tables.add_model(added.index, model, added.memory.slots)
        if self._supervisor.child is not None:
            self._supervisor.child.add_model(added)
        return added.index

    def remove_model(self, model: int) -> None:
        """Frees the index and gives the memory of the slots back, here and in the child.

        Never waits: the child unmaps slots and pool when it comes to it, which is after kernels
        that it still has to compile. The pool may be closed at once. Arrays of the slots stay
        valid as long as somebody has them. Raises ValueError where a slot is in flight.
        """
        added = self._models[self._model(model)]
        self._books.remove_model(model)
        self._tables.remove_model(model)
        if self._supervisor.child is not None:
            self._supervisor.child.remove_model(added)
        self._models.remove(model)

    def is_model_ready(self, model: int) -> bool:
        """Whether the child has the model, as `collect` or `supervise` last found it."""
        return self._models[self._model(model)].is_ready

    def refusal(self, model: int) -> str:
        """Why the child that runs cannot serve the model; empty where it can or has not said."""
        return self._models[self._model(model)].refusal

    @property
    def models(self) -> list[int]:
        """Indices of the models that are there, ascending."""
        return self._models.indices

    @property
    def slots(self) -> Mapping[int, SlotArrays]:
        """Payloads and results, by the index of their model."""
        return {added.index: added.memory.slots for added in self._models}

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
        not get ready or cannot serve one of the models; it is stopped then.
        """
        self.begin_start()
        while (state := self.supervise()) == "starting":
            time.sleep(_POLL_S)
        refusals = [added.refusal for added in self._models if added.refusal]
        if state != "ready" or refusals:
            reason = self.reason if state != "ready" else refusals[0]
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
        integers, HostAttentionDown where nobody will do them. During a restart, and until the model
        is ready, tasks wait.

        Of a slot's block table this looks at the entries of the query tokens; where another one
        that is read was not set, the task ends as BAD_BLOCK.
        """
        if self.state in ("failed", "stopped"):
            raise HostAttentionDown(self._why_down())
        if self._models[self._model(model)].refusal:
            raise HostAttentionDown(f"model {model}: {self._models[model].refusal}")
        self._books.add(model, slots, layers, context_lens, q_lens)
        self._publish()

    def collect(self) -> HostResults:
        """Tasks that ended since; never waits. Supervises now and then.

        Once the process was given up, all that was in flight comes back as CRASHED, and so do tasks
        of a model that the child cannot serve.
        """
        if self._clock() >= self._next_look_s or self._is_model_awaited:
            self.supervise()
        results = self._books.collect()
        self._publish()
        if not len(results):
            results = self._abandon_refused()
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
        state = self._supervisor.look(
            now_s,
            has_work=self._books.num_unfinished > 0,
            progress=read_progress(self._ring.control),
        )
        self._note_known_models()
        return state

    def stop(self, grace_s: float = 5.0) -> None:
        """Ends the child; tasks in flight are dropped and their slots are free."""
        self._supervisor.stop(grace_s)
        if self._ring.memory.fd < 0:
            # Closed before: the ring is not mapped any more, and nothing is in it.
            return
        self._books.drop_all()
        self._clear_tables()

    def close(self) -> None:
        """Stops it and gives the memory back; arrays of it stay valid. May be called again."""
        self.stop()
        for index in self.models:
            self.remove_model(index)
        self._ring.memory.close()

    def _spawn(self) -> HostChild:
        # As when there is no memory: a restart that cannot be made counts as a death.
        self._require_open_pools(OSError)
        return HostChild(self._settings, list(self._models), self._ring.memory.fd)

    def _recover(self) -> None:
        self._models.note_none_ready()
        for index in self.models:
            self._books.set_open(index, False)
        self._books.recover(self._settings.max_attempts)

    @property
    def _is_model_awaited(self) -> bool:
        return self.state == "ready" and any(added.is_awaited for added in self._models)

    def _note_known_models(self) -> None:
        child = self._supervisor.child
        known = {} if child is None else child.take_known()
        for added in self._models:
            if added.serial in known:
                added.refusal = known[added.serial]
                added.is_ready = not added.refusal
                self._books.set_open(added.index, added.is_ready)
        if known:
            self._publish()

    def _abandon_refused(self) -> HostResults:
        """Tasks of one model that the child cannot serve; none where there are none."""
        for added in self._models:
            if added.refusal and self._books.in_flight(added.index).any():
                results = self._books.abandon_model(added.index)
                self._clear_tables()
                return results
        return HostResults.none()

    def _publish(self) -> None:
        self._books.publish()
        self._clear_tables()

    def _clear_tables(self) -> None:
        self._tables.clear_free(self._books.in_flight)

    def _require_open_pools(self, error: type[Exception]) -> None:
        for added in self._models:
            if not added.model.pool.is_open:
                raise error(f"models[{added.index}].pool: the pool is closed")

    def _model(self, model: int) -> int:
        if operator.index(model) not in self._models:
            raise ValueError(f"model {model}: {self.models} are there")
        return model

    def _why_down(self) -> str:
        return f"the host attention process is {self.state}: {self.reason}"
