"""What a model has on the host for its offloaded requests."""

from collections.abc import Callable
from dataclasses import dataclass

from cpu_attn.host import HostKvPool, HostModel
from scheduler import HostBlocks


@dataclass(frozen=True, slots=True)
class HostSide:
    """A model's memory on the host, and what the host process is told of it."""

    pool: HostKvPool
    blocks: HostBlocks
    """Of the pool: its own books, or where models share the host's memory those by which parts of
    it come and go."""
    model: HostModel


@dataclass(frozen=True, slots=True)
class HostBudget:
    """What a model must know of the host memory that it shares with others."""

    extent_blocks: int
    """Blocks that come and go together."""
    floor_bytes: int
    """That are kept for the model, in whole extents."""
    num_reachable: Callable[[], int]
    """Blocks that it can have at most beside the others that are there."""
