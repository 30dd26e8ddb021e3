"""A simulated step on the device that several models share."""

from dataclasses import dataclass

from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.engine.step import SimulatedStep
from scheduler import StandingStep


@dataclass(eq=False, slots=True)
class BegunStep:
    """A step on the device, and what the policy knows of it."""

    model: SimulatedModel
    step: SimulatedStep
    standing: StandingStep

    def pass_layers(self, num_layers: int, started_s: float) -> None:
        """So many more are done, the first of which began at `started_s` on the device."""
        self.model.pass_layers(self.step, num_layers, started_s)
        self.standing.next_layer = self.step.next_layer

    def park(self, now_s: float) -> None:
        """It stands between two layers from now on, and what it takes tells nothing."""
        self.standing.parked_s = now_s
        self.step.was_interrupted = True
