"""One simulated step: what it computes, and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from omniserve.piggyback.lane_table import LaneTable
from scheduler import StepPlan
from scheduler.plan_shape import shape_of
from scheduler.step_time import StepShape

_FIELDS = fields(StepShape)


@dataclass(slots=True)
class SimulatedStep:
    """Layers run in stretches, each of which ends where lane rows are bound anew, or at the end."""

    plan: StepPlan
    lanes: LaneTable | None
    resident: StepShape
    """Of its plan's rows."""
    sampled_ids: list[str]
    """Requests of the plan's rows that yield a token."""
    time_ratio: float
    """What the step takes, over what the model of step times says."""
    lane_ids: list[str] = field(default_factory=list)
    """Offloaded requests that yield a token; known when all layers are done."""
    is_captured: bool = False
    """Its layers run as captured graphs, which nobody can join."""
    ready_s: float = 0.0
    """When its first layer may begin."""
    next_layer: int = 0
    stop_layer: int = 0
    """End of the stretch that is under way."""
    layer_s: float = 0.0
    """Of each layer of the stretch, on the device."""
    was_interrupted: bool = False
    done_s: float = 0.0
    """When the device is done with the layers that it was given."""

    def shape(self, from_layer: int, to_layer: int) -> StepShape:
        """With the lane rows of some of its layers: the mean, of those where there are any if no
        other rows are computed between."""
        num_lane_rows, num_exits = 0.0, 0
        if self.lanes is not None:
            counts = self.lanes.counts[from_layer : to_layer + 1]
            num_segments = len(counts) if self._has_resident_rows else int((counts > 0).sum())
            num_lane_rows = float(counts.sum()) / max(1, num_segments)
            num_exits = int(self.lanes.counts[-1])
        return replace(
            self.resident,
            num_lane_rows=num_lane_rows,
            num_sampled_rows=self.resident.num_sampled_rows + num_exits,
        )

    def busy_share(self, from_layer: int, to_layer: int) -> float:
        """Part of these layers at which there are rows at all."""
        if self.lanes is None or self._has_resident_rows:
            return 1.0
        return float(np.count_nonzero(self.lanes.counts[from_layer : to_layer + 1])) / (
            to_layer - from_layer + 1
        )

    @property
    def may_be_dropped(self) -> bool:
        """Whether no row of it is, or was, on the host."""
        return self.lanes is None or not self.lanes.counts.any()

    def num_rows_at(self, layer: int) -> int:
        """That enter it."""
        num_rows = self.resident.num_decode_rows + self.resident.num_prefill_tokens
        return num_rows + (0 if self.lanes is None else int(self.lanes.counts[layer]))

    @property
    def num_lane_rows(self) -> float:
        """The mean over the layers."""
        return 0.0 if self.lanes is None else float(self.lanes.counts.mean())

    @property
    def _has_resident_rows(self) -> bool:
        return self.resident.num_decode_rows + self.resident.num_prefill_tokens > 0


def joint_shape(shapes: Sequence[StepShape]) -> StepShape:
    """Of a batch of the rows of all these."""
    sums = {field.name: sum(getattr(each, field.name) for each in shapes) for field in _FIELDS}
    return StepShape(**sums | {"coldness": max(each.coldness for each in shapes)})


def lay_out(
    plan: StepPlan, lanes: LaneTable | None, time_ratio: float, coldness: float
) -> SimulatedStep:
    """A step whose first layer is to come."""
    sampled_ids = [rows.request_id for rows in plan.rows if rows.samples]
    resident = replace(shape_of(plan), coldness=coldness)
    return SimulatedStep(plan, lanes, resident, sampled_ids, time_ratio)
