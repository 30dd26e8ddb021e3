"""A step of one model on the device that several share."""

from dataclasses import dataclass

from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from scheduler import StandingStep


@dataclass(slots=True)
class BegunStep:
    """A step on the device, and what the policy knows of it."""

    runtime: ModelRuntime
    step: RunningStep
    standing: StandingStep

    @property
    def model(self) -> str:
        return self.standing.model

    def follow(self, now_s: float) -> None:
        """Layers of it were run just now, beside those of another step: it stands behind them."""
        self.standing.next_layer = self.step.cursor.next_layer
        self.standing.parked_s = now_s
        self.step.was_interrupted = True
