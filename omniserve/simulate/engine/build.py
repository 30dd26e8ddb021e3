"""From a configuration and profiles to simulated engines."""

from collections.abc import Mapping
from random import Random

from omniserve.engine.policy_settings import plan_kv_capacity, scheduler_settings
from omniserve.errors import ConfigError
from omniserve.profiling.profile import Profile
from omniserve.settings import EngineSettings, ModelSettings, PiggybackSettings
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.driver import OnRefused, OnTokens
from omniserve.simulate.engine.engine import SimulatedEngine
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.lanes import SimulatedLanes
from omniserve.simulate.engine.model import SimulatedModel
from scheduler import HostBlocks, Scheduler


def build_engine(
    settings: EngineSettings,
    profiles: Mapping[str, Profile],
    clock: Clock,
    random: Random,
    on_tokens: OnTokens,
    on_refused: OnRefused,
) -> SimulatedEngine:
    """An engine with all models of the settings; `profiles` are by model name.

    Raises:
        ConfigError: a model has no profile, or its KV limit is too small.
    """
    queue = HostQueue()
    models = {
        model.name: _build_model(index, model, profiles, queue, clock, random)
        for index, model in enumerate(settings.models)
    }
    return SimulatedEngine(models, clock, queue, on_tokens, on_refused)


def max_model_lens(settings: EngineSettings, profiles: Mapping[str, Profile]) -> dict[str, int]:
    """Longest prompt plus output of each model, as an engine would tell; raises ConfigError."""
    return {
        model.name: _capacity(model, _profile_of(model, profiles))[1] for model in settings.models
    }


def _profile_of(model: ModelSettings, profiles: Mapping[str, Profile]) -> Profile:
    if model.name not in profiles:
        known = ", ".join(profiles) or "none"
        raise ConfigError(f"models.{model.name}: has no profile; there are profiles of: {known}")
    return profiles[model.name]


def _capacity(model: ModelSettings, profile: Profile) -> tuple[int, int]:
    return plan_kv_capacity(model, profile.kv_bytes_per_token, profile.max_positions)


def _build_model(
    index: int,
    settings: ModelSettings,
    profiles: Mapping[str, Profile],
    queue: HostQueue,
    clock: Clock,
    random: Random,
) -> SimulatedModel:
    profile = _profile_of(settings, profiles)
    num_blocks, max_model_len = _capacity(settings, profile)
    piggyback = settings.piggyback if profile.host is not None else None
    blocks = None if piggyback is None else _host_blocks(settings, piggyback, profile)
    scheduler = Scheduler(
        scheduler_settings(settings, num_blocks, max_model_len, piggyback),
        blocks,
        settings.step_time or (profile.step_time if settings.measures_step_time else None),
    )
    lanes = None
    if piggyback is not None:
        lanes = SimulatedLanes(index, scheduler, piggyback, profile, queue, clock)
    return SimulatedModel(settings.name, profile, scheduler, lanes, random, clock)


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
