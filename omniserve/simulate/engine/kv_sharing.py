"""One KV budget for the models of a simulated engine: the arbiter that serves, on its clock."""

from collections.abc import Sequence

from omniserve.engine.kv_arbiter import DropStanding, KvArbiter, drop_nothing
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.model import SimulatedModel
from scheduler.kv_memory import KvMemory

_GIVEN_BACK_PER_S = 8e9
"""Bytes that a kernel takes back, as seen on one machine."""


class _WorkClock:
    """Simulated time, and what has been spent of it since the engine last waited."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent_s = 0.0

    def __call__(self) -> float:
        return self._clock.now_s + self._spent_s

    def spend(self, seconds: float) -> None:
        self._spent_s += seconds

    def take_spent_s(self) -> float:
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s


class KvSharing:
    """Memory that is given back takes time; that which is granted costs nothing."""

    def __init__(self, num_bytes: int | None, clock: Clock) -> None:
        """Without a budget nothing moves."""
        self._clock = _WorkClock(clock)
        self.arbiter = KvArbiter(num_bytes, self._clock)
        self._models: list[SimulatedModel] = []

    @property
    def num_bytes(self) -> int | None:
        """Of all models together; None where each has its own."""
        return None if self.arbiter.budget is None else self.arbiter.budget.num_bytes

    @property
    def is_awaited(self) -> bool:
        """Whether latency-sensitive requests cannot go on before memory has moved."""
        if self.num_bytes is None:
            return False
        return any(model.scheduler.memory.is_urgent_work_stuck for model in self._models)

    def add(self, model: SimulatedModel) -> None:
        """An expected model has its part."""
        self._models.append(model)
        settings = model.scheduler.settings
        block_bytes = model.profile.kv_bytes_per_token * settings.block_size
        num_longest = -(-settings.max_model_len // settings.block_size)
        holder = _SimulatedKv(model, block_bytes, self._clock)
        self.arbiter.add(model.name, holder, block_bytes, settings.num_blocks, num_longest)

    def balance(self, drop_standing: DropStanding = drop_nothing) -> float:
        """Before a step: moves what should be moved now; returns the seconds that it takes."""
        self.arbiter.balance(drop_standing)
        return self._clock.take_spent_s()

    def hasten(self, drop_standing: DropStanding) -> float:
        """Between two layers: moves what latency-sensitive requests wait for; returns as
        `balance`."""
        self.arbiter.hasten(drop_standing)
        return self._clock.take_spent_s()


class _SimulatedKv:
    """A `KvHolder` without memory."""

    def __init__(self, model: SimulatedModel, block_bytes: int, clock: _WorkClock) -> None:
        self._model = model
        self._block_bytes = block_bytes
        self._clock = clock

    @property
    def memory(self) -> KvMemory:
        return self._model.scheduler.memory

    def give_way(self, num_extents: int) -> None:
        scheduler = self._model.scheduler
        scheduler.journal.advance(self._clock())
        scheduler.memory.give_way(num_extents)
        if self._model.lanes is not None:
            self._model.lanes.begin_copies()

    def reserve_extents(self, extents: Sequence[int]) -> None:
        pass

    def give_back_extents(self, extents: Sequence[int]) -> None:
        num_bytes = len(extents) * self.memory.blocks_per_extent * self._block_bytes
        self._clock.spend(num_bytes / _GIVEN_BACK_PER_S)
