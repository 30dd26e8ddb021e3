"""What the scheduler knows of a request that is offloaded."""

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where an offloaded request stands; it is in exactly one of these."""

    SWAPPING_OUT = "swapping_out"
    """Its KV is being copied to the host; the device blocks are still held."""
    AT_BOUNDARY = "at_boundary"
    """All tokens but the last one have their KV on the host; the last one waits to enter."""
    IN_LANES = "in_lanes"
    """Its last token is on its way through the layers."""
    SWAPPING_IN = "swapping_in"
    """Its KV is being copied to the device; the host blocks are still held."""


@dataclass(slots=True)
class HostStay:
    """A lane and a table of host blocks, from the decision to offload to that to let go."""

    lane: int
    block_ids: list[int]
    num_shared: int
    """Blocks from the front whose contents the host held already."""
    phase: Phase = Phase.SWAPPING_OUT
    num_announced: int = 0
    """Blocks from the front that lane entries have named."""
    is_cancelled: bool = False
    """Once the copy under way has landed, the request is to be computed again from its start."""

    @property
    def is_leaving(self) -> bool:
        """Whether its blocks are let go of once the copy under way has landed."""
        return self.phase is Phase.SWAPPING_IN or self.is_cancelled

    @property
    def is_copying(self) -> bool:
        return self.phase in (Phase.SWAPPING_OUT, Phase.SWAPPING_IN)
