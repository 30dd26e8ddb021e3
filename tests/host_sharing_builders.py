"""Modelled engines whose offloaded requests share the host's memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_host_model import SPOILT
from scheduler_simulation import Simulation

from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.engine.kv_budget_terms import HOST_KV
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import Scheduler, SchedulerSettings
from scheduler.elastic_host_blocks import ElasticHostBlocks
from scheduler.host_kv_memory import HostKvMemory

PATIENCE_S = 5.0


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class Sharer:
    """A modelled engine; `pages` are the extents that memory stands behind."""

    def __init__(
        self,
        name: str,
        settings: SchedulerSettings,
        arbiter: KvArbiter,
        *,
        num_blocks: int,
        block_bytes: int,
        extent_blocks: int = 1,
        floor_bytes: int | None = None,
    ) -> None:
        """Joins the arbiter; `num_blocks` is the most it may have on the host."""
        most_bytes = num_blocks * block_bytes
        piggyback = PiggybackSettings(most_bytes, host_kv_floor_bytes=floor_bytes)
        arbiter.expect(ModelSettings(name, "nowhere", piggyback=piggyback))
        budget = arbiter.budget
        assert budget is not None
        unit_bytes = block_bytes * extent_blocks
        self.name, self.block_bytes, self.extent_blocks = name, block_bytes, extent_blocks
        self.pages: set[int] = set()
        self.blocks = ElasticHostBlocks(
            num_blocks,
            settings.block_size,
            extent_blocks,
            lambda: budget.reach_bytes(name, unit_bytes) // block_bytes,
        )
        self.simulation = Simulation(Scheduler(settings, self.blocks), self.blocks)
        arbiter.add(name, self, block_bytes, num_blocks, 0)

    @property
    def scheduler(self) -> Scheduler:
        return self.simulation.scheduler

    @property
    def memory(self) -> HostKvMemory:
        memory = self.scheduler.host_memory
        assert memory is not None
        return memory

    @property
    def granted_bytes(self) -> int:
        return self.memory.num_granted * self.block_bytes

    @property
    def used_bytes(self) -> int:
        return self.blocks.num_used_blocks * self.block_bytes

    def give_way(self, num_extents: int) -> None:
        self.memory.give_way(num_extents)
        self.simulation.begin_copies()

    def reserve_extents(self, extents: Sequence[int]) -> None:
        assert not self.pages & set(extents), "granted twice"
        self.pages |= set(extents)

    def give_back_extents(self, extents: Sequence[int]) -> None:
        """What was written there is lost, so whoever reads it is found out."""
        assert self.pages >= set(extents), "given back twice"
        self.pages -= set(extents)
        memory = self.simulation.host.memory
        for place in memory:
            if place[1] // self.extent_blocks in set(extents):
                memory[place] = SPOILT

    def check(self) -> None:
        """All blocks that are held are backed, and the books agree."""
        self.scheduler.check_integrity()
        assert len(self.pages) * self.extent_blocks * self.block_bytes == self.granted_bytes
        for request in self.scheduler._queues.by_id.values():
            if request.stay is not None:
                held = {block_id // self.extent_blocks for block_id in request.stay.block_ids}
                assert held <= self.pages, "blocks without memory"

    def step(self, depth: int = 1) -> None:
        """A plan, its completion, and what the host has to do."""
        simulation = self.simulation
        while len(simulation.flights) < depth and simulation.schedule():
            pass
        if simulation.flights or simulation.overtaking:
            simulation.complete()
        simulation.let_host_catch_up()


def make_arbiter(budget: int, clock: Clock) -> KvArbiter:
    return KvArbiter(budget, clock, HOST_KV, PATIENCE_S)


def run(
    arbiter: KvArbiter, clock: Clock, *sharers: Sharer, num_steps: int, step_s: float = 0.02
) -> None:
    for _ in range(num_steps):
        clock.now_s += step_s
        arbiter.balance()
        arbiter.check_integrity()
        for sharer in sharers:
            sharer.step()
            sharer.check()
