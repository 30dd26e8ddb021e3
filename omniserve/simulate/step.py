"""One simulated step: what it computes, and how far it has come."""

from dataclasses import dataclass

from omniserve.piggyback.lane_table import LaneTable
from omniserve.simulate.step_time import StepShape
from scheduler import StepPlan


@dataclass(slots=True)
class SimulatedStep:
    """Layers run in stretches, each of which ends where lane rows are bound anew, or at the end."""

    plan: StepPlan
    lanes: LaneTable | None
    num_decode_rows: int
    decode_context_tokens: int
    num_prefill_tokens: int
    prefill_pairs: int
    sampled_ids: list[str]
    """Requests of the plan's rows that yield a token."""
    time_ratio: float
    """What the step takes, over what the model of step times says."""
    ready_s: float = 0.0
    """When its first layer may begin."""
    next_layer: int = 0
    stop_layer: int = 0
    """End of the stretch that is under way."""
    layer_s: float = 0.0
    """Of each layer of the stretch, on the device."""
    done_s: float = 0.0
    """When the device is done with the layers that it was given."""

    def shape(self, from_layer: int, to_layer: int, host_active: bool) -> StepShape:
        """With the lane rows of some of its layers."""
        num_lane_rows = 0.0
        num_exits = 0
        if self.lanes is not None:
            num_lane_rows = float(self.lanes.counts[from_layer : to_layer + 1].mean())
            num_exits = int(self.lanes.counts[-1])
        return StepShape(
            self.num_decode_rows,
            self.decode_context_tokens,
            self.num_prefill_tokens,
            self.prefill_pairs,
            num_lane_rows,
            len(self.sampled_ids) + num_exits,
            host_active,
        )


def lay_out(plan: StepPlan, lanes: LaneTable | None, time_ratio: float) -> SimulatedStep:
    """Counts a plan's rows; a prefill chunk of one token runs as a decode row does."""
    num_decodes = context_tokens = num_prefill_tokens = prefill_pairs = 0
    sampled_ids = []
    for rows in plan.rows:
        num_tokens, start = rows.num_tokens, rows.start
        if num_tokens == 1:
            num_decodes += 1
            context_tokens += start + 1
        else:
            num_prefill_tokens += num_tokens
            prefill_pairs += num_tokens * start + num_tokens * (num_tokens + 1) // 2
        if rows.samples:
            sampled_ids.append(rows.request_id)
    return SimulatedStep(
        plan,
        lanes,
        num_decodes,
        context_tokens,
        num_prefill_tokens,
        prefill_pairs,
        sampled_ids,
        time_ratio,
    )
