"""Measures one model of a configuration in a process of its own."""

from collections.abc import Callable
from dataclasses import replace

import msgspec

from omniserve.phase_display import PhaseDisplay
from omniserve.profiling.alone import alone
from omniserve.profiling.assembly import Assembly, Measured
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.measuring_process import measuring
from omniserve.profiling.messages import (
    Answer,
    Effort,
    Identified,
    Identify,
    Measure,
    Phase,
    Progress,
)
from omniserve.profiling.profile import EffortName
from omniserve.settings import EngineSettings

_POOL_BYTES = 1 << 30
"""Of the host's pool: what is measured needs no more."""

THOROUGH = Effort(
    "thorough",
    alone_s=30.0,
    beside_host_s=20.0,
    host_s=8.0,
    max_scenes=44,
    max_prompt_tokens=16384,
    max_medley_steps=150,
    max_works=6,
)
QUICK = Effort(
    "quick",
    alone_s=12.0,
    beside_host_s=8.0,
    host_s=5.0,
    max_scenes=24,
    max_prompt_tokens=8192,
    max_medley_steps=80,
    max_works=4,
)

PHASES: dict[Phase, str] = {
    "alone": "steps on all cores",
    "beside_host": "steps on the cores that the host leaves",
    "host": "attention on the host",
}
"""In words."""

Listener = Callable[[Answer], None]


def display_listener(display: PhaseDisplay) -> Listener:
    """Shows progress there."""

    def hear(answer: Answer) -> None:
        if isinstance(answer, Progress):
            display.show(PHASES[answer.phase], answer.done)

    return hear


class Profiler:
    """Blocks while it measures, which is minutes."""

    def __init__(
        self,
        settings: EngineSettings,
        model: str,
        effort: Effort,
        *,
        seed: int = 0,
        patience_s: float = 0.0,
        listener: Listener = lambda answer: None,
    ) -> None:
        """patience_s: longest wait, now and then, for others to leave the cores alone.

        The listener hears of all that is measured. Raises ConfigError where there is no such model.
        """
        self._settings = _with_small_pool(alone(settings, model))
        self._effort = effort
        self._patience_s = patience_s
        self._seed = seed
        self._listener = listener

    @property
    def effort_name(self) -> EffortName:
        return self._effort.name

    def identify(self) -> MeasuredOn:
        """What a profile made now would be of. Raises as `run` does."""
        with measuring(Identify(self._settings)) as answers:
            (answer,) = answers
        assert isinstance(answer, Identified)
        return answer.measured_on

    def run(self) -> Measured:
        """Raises ConfigError, CheckpointError, TooFewSteps or MeasuringFailed."""
        effort = msgspec.structs.replace(self._effort, patience_s=self._patience_s)
        assembly = Assembly(effort)
        with measuring(Measure(self._settings, effort, self._seed)) as answers:
            for answer in answers:
                assembly.take(answer)
                self._listener(answer)
        return assembly.result()


def _with_small_pool(settings: EngineSettings) -> EngineSettings:
    (model,) = settings.models
    piggyback = model.piggyback
    if piggyback is None:
        return settings
    num_bytes = min(piggyback.host_kv_bytes, _POOL_BYTES)
    model = replace(model, piggyback=replace(piggyback, host_kv_bytes=num_bytes))
    return EngineSettings(settings.device, (model,))
