"""The whole calibration of one model: from its configuration to a profile."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from omniserve.config import Config
from omniserve.profiling import messages, profiler
from omniserve.profiling.fit import StepFit
from omniserve.profiling.profile import Profile
from omniserve.profiling.profiler import Listener, Profiler
from omniserve.simulate.calibration.front_run import FrontEffort, FrontMeasured, measure_front

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a calibration may take."""

    engine: messages.Effort
    front: FrontEffort


THOROUGH = Effort(profiler.THOROUGH, FrontEffort(duration_s=3.0, num_rounds=4))
QUICK = Effort(profiler.QUICK, FrontEffort(duration_s=3.0, num_rounds=1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it."""

    profile: Profile
    alone: StepFit
    beside_host: StepFit | None
    front: FrontMeasured | None
    """None where it was not asked for."""


class Calibrator:
    """Measures one model, as `omniserve profile` does, and what front and clients add; blocks for
    minutes."""

    def __init__(
        self,
        config: Config,
        model: str,
        effort: Effort,
        say: Say,
        *,
        seed: int = 0,
        patience_s: float = 0.5,
        listener: Listener,
    ) -> None:
        """patience_s: longest wait, now and then, for others to leave the cores alone. `listener`
        hears of the engine, `say` of the front.

        Raises ConfigError where there is no such model.
        """
        self._config = config
        self._name = model
        self._profiler = Profiler(
            config.engine_settings(),
            model,
            effort.engine,
            seed=seed,
            patience_s=patience_s,
            listener=listener,
        )
        self._front_effort = replace(effort.front, patience_s=patience_s)
        self._say = say

    def run(self, *, with_front: bool = True) -> Calibration:
        """Raises ConfigError, CheckpointError, TooFewSteps, MeasuringFailed or DaemonFailed."""
        measured = self._profiler.run()
        profile, front = measured.profile, None
        if with_front:
            (model,) = (
                each for each in self._config.engine_settings().models if each.name == self._name
            )
            front = measure_front(self._config, model, profile, self._front_effort, self._say)
            profile = replace(profile, front=front.latency)
        return Calibration(profile, measured.alone, measured.beside_host, front)
