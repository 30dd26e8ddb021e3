"""The KV memory that models share: the device's, and the host's beside it."""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass

from cpu_attn.host.shared_memory import huge_page_bytes
from omniserve.devices.device import Device
from omniserve.engine.host_model_kv import HostModelKv
from omniserve.engine.kv_arbiter import DropStanding, KvArbiter, drop_nothing
from omniserve.engine.kv_budget import KvBudget
from omniserve.engine.kv_budget_terms import HOST_KV
from omniserve.engine.kv_pool import DeviceKvPool
from omniserve.engine.model_kv import ModelKv
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.policy_settings import blocks_per_extent, plan_extents
from omniserve.errors import ConfigError
from omniserve.piggyback.host_side import HostBudget, HostSide
from omniserve.settings import AsleepModel, EngineSettings, ModelSettings
from scheduler.elastic_host_blocks import ElasticHostBlocks

_HOST_PATIENCE_S = 5.0
"""So long offloaded requests of a model that has more keep it while another one's lack memory: what
they lose is computed again, and what ends meanwhile gives memory for nothing."""


@dataclass(frozen=True, slots=True)
class KvBudgets:
    """None: every model has its pool for itself."""

    device: KvBudget | None = None
    host: KvBudget | None = None

    def host_part(self, settings: ModelSettings, block_bytes: int) -> HostBudget | None:
        """Of a model that has its place; None where it has host memory of its own, or none.

        Raises:
            ConfigError: its floor is too small for one extent.
        """
        budget = self.host
        if budget is None or settings.piggyback is None:
            return None
        extent_blocks = blocks_per_extent(block_bytes, huge_page_bytes() or mmap.PAGESIZE)
        extents = plan_extents(settings, budget, block_bytes, extent_blocks)
        unit_bytes = block_bytes * extent_blocks
        return HostBudget(
            extent_blocks,
            extents.floor_bytes,
            lambda: budget.reach_bytes(settings.name, unit_bytes) // block_bytes,
        )


class KvSharing:
    """One arbiter for each memory; both are asked before every step."""

    def __init__(self, settings: EngineSettings, device: Device) -> None:
        """Raises ConfigError for a host budget where the device has that memory page-locked."""
        if settings.host_kv_bytes is not None:
            device.require_elastic_host()
        self.device = KvArbiter(settings.device.kv_bytes)
        self.host = KvArbiter(settings.host_kv_bytes, terms=HOST_KV, patience_s=_HOST_PATIENCE_S)

    @property
    def budgets(self) -> KvBudgets:
        return KvBudgets(self.device.budget, self.host.budget)

    def expect(self, *models: ModelSettings) -> None:
        """Keeps room for models that are about to be loaded, all of them or none.

        Raises:
            ConfigError: it is not there.
        """
        self.device.expect(*models)
        try:
            self.host.expect(*models)
        except ConfigError:
            for model in models:
                self.device.remove(model.name)
            raise

    def expect_later(self, models: Iterable[AsleepModel]) -> None:
        """Keeps room for models that are asleep; raises as `expect` does."""
        for model in models:
            self.device.expect_later(model.settings, model.longest_kv_bytes)
            self.host.expect_later(model.settings, 0)

    def join(
        self,
        runtime: ModelRuntime,
        pool: DeviceKvPool,
        num_blocks: int,
        host: HostSide | None,
    ) -> None:
        """An expected model is there, with so many blocks of its device pool for its requests."""
        name, block_tokens = runtime.info.name, runtime.scheduler.settings.block_size
        num_longest = -(-runtime.info.max_model_len // block_tokens)
        self.device.add(name, ModelKv(runtime, pool), pool.block_bytes, num_blocks, num_longest)
        if host is None or not isinstance(host.blocks, ElasticHostBlocks):
            # Nothing is kept for a model that cannot be served there, whatever its settings say.
            self.host.remove(name)
            return
        holder, block_bytes = HostModelKv(runtime, host.pool), host.pool.layout.block_bytes
        # Who does not fit stays on the device, so the longest request needs no room.
        self.host.add(name, holder, block_bytes, host.pool.num_blocks, num_longest=0)

    def retire(self, model: str) -> None:
        """The model is leaving with its pools: nothing moves there any more, and nobody has what it
        had before `remove`."""
        self.device.retire(model)
        self.host.retire(model)

    def rest(self, model: str) -> None:
        """The model, which was retired, is asleep: others may have what it had, and its floors stay
        its own."""
        self.device.rest(model)
        self.host.rest(model)

    def remove(self, model: str) -> None:
        """The model is gone with its pools, or could not be loaded."""
        self.device.remove(model)
        self.host.remove(model)

    def balance(self, drop_standing: DropStanding = drop_nothing) -> None:
        """Moves what should be moved now, as far as there is time for it."""
        # The host's first: whoever yields on the device goes there.
        self.host.balance()
        self.device.balance(drop_standing)

    def hasten(self, drop_standing: DropStanding = drop_nothing) -> None:
        """Amid a step: goes on with what latency-sensitive requests wait for."""
        self.device.hasten(drop_standing)

    def check_integrity(self) -> None:
        """Raises an AssertionError where models have more than there is."""
        self.device.check_integrity()
        self.host.check_integrity()
