"""Steps that a fit did not see, and what it says of them."""

from dataclasses import dataclass

from scheduler.step_time import StepShape


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """One of them."""

    shape: StepShape
    seconds: float
    predicted_s: float

    @property
    def accuracy(self) -> float:
        """1 - |error| / real; not below 0."""
        return max(0.0, 1.0 - abs(self.predicted_s - self.seconds) / self.seconds)


@dataclass(frozen=True, slots=True)
class JudgedSteps:
    """Undisturbed ones of a profile; not all that there were."""

    alone: tuple[JudgedStep, ...] = ()
    beside_host: tuple[JudgedStep, ...] = ()
    """On the cores that the host leaves."""
    with_lanes: tuple[JudgedStep, ...] = ()
    """Beside rows from the host, while it is busy."""
