"""The lane rows of one step where the device sees them too."""

from dataclasses import dataclass

import torch
from torch import Tensor

from omniserve.devices.pinned import to_device
from omniserve.piggyback.lane_table import LaneTable


@dataclass(frozen=True, slots=True)
class LaneRows(LaneTable):
    """The table, and its mirror on the device."""

    device_lanes: Tensor
    """`lanes` where the device can index with them; on a CPU device the very same memory."""
    device_positions: Tensor

    @classmethod
    def empty(cls, num_layers: int, width: int, num_lanes: int, device: torch.device) -> "LaneRows":
        table = LaneTable.without_rows(num_layers, width, num_lanes)
        return cls(
            table.lanes,
            table.positions,
            table.counts,
            to_device(table.lanes, device),
            to_device(table.positions, device),
        )

    def device_lanes_of(self, segment: int) -> Tensor:
        return self.device_lanes[segment, : int(self.counts[segment])]

    def device_positions_of(self, segment: int) -> Tensor:
        return self.device_positions[segment, : int(self.counts[segment])]
