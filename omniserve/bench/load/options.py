"""How long a run takes, and how often something is looked at."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Settings of one run."""

    duration_s: float = 60.0
    """The measured part; open-loop requests are sent until its end."""
    warm_up_s: float = 10.0
    """Load before the measured part; its requests are recorded with negative times."""
    drain_s: float = 30.0
    """How long open-loop requests may go on after the measured part; then they are cut off."""
    seed: int = 0
    """Equal seeds send equal tokens."""
    title: str = ""
    status_interval_ms: int = 500
    progress_interval_s: float = 1.0
