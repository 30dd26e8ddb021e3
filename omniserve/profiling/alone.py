"""A model by itself, as it is beside the others of its engine."""

from dataclasses import replace

from omniserve.errors import ConfigError
from omniserve.settings import EngineSettings


def alone(settings: EngineSettings, name: str) -> EngineSettings:
    """The settings to measure it with: nothing is known of its steps.

    Raises ConfigError where there is no such model.
    """
    found = [model for model in settings.models if model.name == name]
    if not found:
        names = ", ".join(model.name for model in settings.models)
        raise ConfigError(f"--model: {name!r} is not configured; allowed: {names}")
    piggyback = found[0].piggyback
    if piggyback is not None:
        # All models share one host process, with as many cores as the hungriest asks for.
        num_threads = max(
            model.piggyback.host_attention_threads
            for model in settings.models
            if model.piggyback is not None
        )
        piggyback = replace(piggyback, host_attention_threads=num_threads)
    model = replace(found[0], piggyback=piggyback, step_time=None, measures_step_time=False)
    return EngineSettings(settings.device, (model,))
