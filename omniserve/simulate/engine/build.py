"""From a configuration and profiles to simulated engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from omniserve.engine.kv_budget import KvBudget
from omniserve.engine.policy_settings import (
    blocks_per_extent,
    plan_extents,
    plan_kv_capacity,
    scheduler_settings,
)
from omniserve.errors import ConfigError
from omniserve.profiling.profile import Profile
from omniserve.settings import EngineSettings, ModelSettings, PiggybackSettings
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.driver import OnRefused, OnTokens
from omniserve.simulate.engine.engine import SimulatedEngine
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.kv_sharing import KvSharing
from omniserve.simulate.engine.lanes import SimulatedLanes
from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.shared_layers import NONE_SHARED, LayerKeys
from scheduler import HostBlocks, Scheduler

_PAGE_BYTES, _DEVICE_PAGE_BYTES = 4 << 10, 2 << 20
"""In which memory of a CPU device comes and goes, and in which an accelerator's would."""


def build_engine(
    settings: EngineSettings,
    profiles: Mapping[str, Profile],
    clock: Clock,
    random: Random,
    on_tokens: OnTokens,
    on_refused: OnRefused,
    layer_keys: LayerKeys = NONE_SHARED,
) -> SimulatedEngine:
    """An engine with all models of the settings; `profiles` are by model name, and models share
    those layers of which `layer_keys` says so.

    Raises:
        ConfigError: a model has no profile, its KV limit is too small, or the KV budget of all.
    """
    queue, sharing = HostQueue(), KvSharing(settings.device.kv_bytes, clock)
    sharing.arbiter.expect(*settings.models)
    capacities = _capacities(settings, profiles, sharing.arbiter.budget)
    models: dict[str, SimulatedModel] = {}
    for index, model in enumerate(settings.models):
        profile = profiles[model.name]
        scheduler = _build_scheduler(model, profile, capacities[model.name])
        lanes = None
        if model.piggyback is not None and profile.host is not None:
            lanes = SimulatedLanes(index, scheduler, model.piggyback, profile, queue, clock)
        models[model.name] = SimulatedModel(
            *(model.name, profile, scheduler, lanes, random, clock), layer_keys.get(model.name, ())
        )
    for built in models.values():
        sharing.add(built)
    return SimulatedEngine(models, clock, queue, sharing, on_tokens, on_refused)


def max_model_lens(settings: EngineSettings, profiles: Mapping[str, Profile]) -> dict[str, int]:
    """Longest prompt plus output of each model, as an engine would tell; raises ConfigError."""
    num_bytes = settings.device.kv_bytes
    budget = None if num_bytes is None else KvBudget(num_bytes)
    if budget is not None:
        budget.reserve(settings.models)
    capacities = _capacities(settings, profiles, budget)
    return {name: capacity.max_model_len for name, capacity in capacities.items()}


@dataclass(frozen=True, slots=True)
class _Capacity:
    num_blocks: int
    max_model_len: int
    extent_blocks: int | None
    """Blocks that come and go together, where models share a budget."""


def _capacities(
    settings: EngineSettings, profiles: Mapping[str, Profile], budget: KvBudget | None
) -> dict[str, _Capacity]:
    return {
        model.name: _capacity(model, _profile_of(model, profiles), budget)
        for model in settings.models
    }


def _profile_of(model: ModelSettings, profiles: Mapping[str, Profile]) -> Profile:
    if model.name not in profiles:
        known = ", ".join(profiles) or "none"
        raise ConfigError(f"models.{model.name}: has no profile; there are profiles of: {known}")
    return profiles[model.name]


def _capacity(model: ModelSettings, profile: Profile, budget: KvBudget | None) -> _Capacity:
    extents = None
    if budget is not None:
        block_bytes = profile.kv_bytes_per_token * model.block_size
        page_bytes = _PAGE_BYTES if profile.pipeline_depth == 1 else _DEVICE_PAGE_BYTES
        at_once = blocks_per_extent(block_bytes // profile.num_layers, page_bytes)
        extents = plan_extents(model, budget, block_bytes, at_once)
    num_blocks, max_model_len = plan_kv_capacity(
        model, profile.kv_bytes_per_token, profile.max_positions, extents
    )
    return _Capacity(num_blocks, max_model_len, None if extents is None else extents.num_blocks)


def _build_scheduler(settings: ModelSettings, profile: Profile, capacity: _Capacity) -> Scheduler:
    piggyback = settings.piggyback if profile.host is not None else None
    return Scheduler(
        scheduler_settings(
            settings,
            capacity.num_blocks,
            capacity.max_model_len,
            piggyback,
            capacity.extent_blocks,
        ),
        None if piggyback is None else _host_blocks(settings, piggyback, profile),
        settings.step_time or (profile.step_time if settings.measures_step_time else None),
    )


def _host_blocks(model: ModelSettings, settings: PiggybackSettings, profile: Profile) -> HostBlocks:
    from omniserve.simulate.engine.host_blocks import SimulatedHostBlocks

    block_bytes = profile.kv_bytes_per_token * model.block_size
    num_blocks = settings.host_kv_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"models.{model.name}.piggyback.host_kv_bytes: {settings.host_kv_bytes} bytes hold no "
            f"KV block; one block of {model.block_size} tokens takes {block_bytes} bytes"
        )
    return SimulatedHostBlocks(num_blocks)
