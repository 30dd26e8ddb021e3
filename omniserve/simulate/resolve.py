"""Streams and profiles as a configuration understands them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from omniserve.bench.load.stream_arguments import with_objectives
from omniserve.bench.load.streams import Stream, TraceStream
from omniserve.bench.load.target import ModelInfo, TargetInfo, TierInfo
from omniserve.bench.trace.transform import scale
from omniserve.config import Config
from omniserve.errors import ConfigError
from omniserve.profiling.profile import Profile
from omniserve.requests import TierSettings
from omniserve.settings import EngineSettings
from omniserve.tier_table import TierTable


def resolve_streams(streams: Sequence[Stream], config: Config) -> list[Stream]:
    """With the model, the class and the objectives that a daemon of this configuration would find.

    Raises ConfigError where a stream asks for a model or a tier that is not there.
    """
    served = _described(config)
    return with_objectives([_resolve(stream, served) for stream in streams], served)


def _described(config: Config) -> TargetInfo:
    """What a daemon would say of itself, as far as it decides where requests go."""
    models = (
        ModelInfo(model.name, vocab_size=0, default_tier=config.default_tier(model.name).name)
        for model in config.models
    )
    tiers = (
        TierInfo(tier.name, tier.service_class, tier.ttft_ms, tier.tpot_ms) for tier in config.tiers
    )
    return TargetInfo("OmniServe", "simulated", "", tuple(models), tuple(tiers))


def _resolve(stream: Stream, served: TargetInfo) -> Stream:
    info = stream.info
    model = served.model(info.model)
    if model is None:
        raise _unknown(info.name, "model", info.model, [each.name for each in served.models])
    tier = served.tier(model.name, info.tier)
    if tier is None:
        raise _unknown(info.name, "tier", info.tier, [each.name for each in served.tiers])
    info = replace(info, model=model.name, tier=tier.name, service_class=tier.service_class)
    return replace(stream, info=info)


def _unknown(stream: str, field: str, value: str, allowed: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"stream {stream}: {field}: {value!r} is not configured; allowed: {', '.join(allowed)}"
    )


def tiers_by_name(config: Config) -> dict[str, TierSettings]:
    """As an engine is told of them."""
    table = TierTable(config.tiers, config.models)
    return {tier.name: tier for tier in table.all_settings}


def scaled(streams: Sequence[Stream], rate: float) -> list[Stream]:
    """Traces at `rate` times their speed; backlogs as they are."""
    return [
        replace(stream, trace=scale(stream.trace, rate=rate))
        if isinstance(stream, TraceStream)
        else stream
        for stream in streams
    ]


def profile_by_model(profiles: Iterable[Profile], config: Config) -> Mapping[str, Profile]:
    """A single profile stands for every model of the configuration; several go by their names.

    Raises ConfigError where two have the same name, or one of several that of no model.
    """
    profiles = list(profiles)
    if len(profiles) == 1:
        return {model.name: profiles[0] for model in config.models}
    names = [model.name for model in config.models]
    by_name: dict[str, Profile] = {}
    for profile in profiles:
        if profile.model not in names:
            raise ConfigError(
                f"--profile: model {profile.model!r} is not configured; allowed: {', '.join(names)}"
            )
        if profile.model in by_name:
            raise ConfigError(f"--profile: two profiles are of model {profile.model!r}")
        by_name[profile.model] = profile
    return by_name


def models_without_host(settings: EngineSettings, profiles: Mapping[str, Profile]) -> list[str]:
    """Models that are to piggyback, but of whose host their profile knows nothing: they are
    simulated without."""
    return [
        model.name
        for model in settings.models
        if model.piggyback is not None
        and model.name in profiles
        and profiles[model.name].host is None
    ]
