"""How an engine process is run, and when it is given up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omniserve.engine_process_handle import ENGINE_COMMAND


@dataclass(frozen=True, slots=True)
class EngineSupervision:
    """What the daemon goes by; tests put other processes and shorter times in its place."""

    heartbeat_s: float = 30.0
    """An engine that is ready and says nothing for this long is killed."""
    load_s: float = 600.0
    """An engine that is not ready after this long is killed."""
    command: Sequence[str] = ENGINE_COMMAND
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the engine process on top of the front's own environment."""
