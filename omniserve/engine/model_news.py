"""What becomes of models that are to be loaded or unloaded; `question` is what the caller gave."""

from dataclasses import dataclass

from omniserve.settings import LoadPhase, ModelInfo
from scheduler.step_time import LinearStepTime


@dataclass(frozen=True, slots=True)
class LoadAdvanced:
    """A load is under way."""

    question: int
    phase: LoadPhase
    done_bytes: int
    """Of its weights."""
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is served."""

    question: int
    info: ModelInfo
    step_time: LinearStepTime | None
    """What is known of its steps."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is left of the load."""

    question: int
    message: str
    is_checkpoint: bool
    """Whether the checkpoint is at fault, and not settings or memory."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Nothing is left of the model."""

    question: int


News = LoadAdvanced | Loaded | Refused | Unloaded
