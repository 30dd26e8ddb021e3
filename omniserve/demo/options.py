"""What a run of the demo can be told."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONFIG = Path("examples/demo.yaml")
DEFAULT_REPORT = Path("out/demo.html")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a daemon listens, both as host:port."""

    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The rate and the concurrency are what two cores carry with the objectives met."""

    config: Path = DEFAULT_CONFIG
    report: Path = DEFAULT_REPORT
    duration_s: float = 45.0
    ls_rate: float = 4.0
    """Arrivals of latency-sensitive requests per second."""
    be_concurrency: int = 8
    """Best-effort requests that are kept unfinished at any time."""
    seed: int = 0
    model: str | None = None
    """None takes the first model that is served."""
    attach: Addresses | None = None
    """A running daemon to use; None starts one."""
    is_live: bool = True
    """False keeps to plain lines even on a terminal."""
