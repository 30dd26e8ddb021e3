"""What the two ends say to each other before tasks go over the ring."""

from dataclasses import dataclass

from cpu_attn.host.settings import HostModel, HostSettings

READY = "ready"
"""The child's answer to a Start; anything else says why it cannot."""
STOP = "stop"
"""The parent's last word; the child takes the end of the connection for the same."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the parent sends; file descriptors are the child's own."""

    parent_pid: int
    memory_fd: int
    settings: HostSettings
    models: tuple[HostModel, ...]
