"""A planned step and how far it has come."""

from collections.abc import Mapping
from dataclasses import dataclass

from omniserve.engine.executor import StepCursor
from omniserve.engine.host_copy import HostCopy
from omniserve.engine.sampler import Sampled
from omniserve.engine.sequences import Advance, SampledRow
from scheduler import StepPlan, StepResult


@dataclass(slots=True)
class RunningStep:
    """From the plan until its tokens are there."""

    plan: StepPlan
    cursor: StepCursor
    started_s: float
    rows: tuple[SampledRow, ...] = ()
    """Rows that are sampled; those of offloaded requests come last."""
    sampled: Sampled | None = None
    tokens: HostCopy | None = None
    """The sampled tokens on their way to the host."""
    was_interrupted: bool = False
    """Whether other work ran between its layers."""

    @property
    def may_be_dropped(self) -> bool:
        """Whether nothing is lost with it but the time of its layers: no row of it is, or was, on
        the host."""
        lanes = self.cursor.lanes
        return lanes is None or lanes.is_empty

    @property
    def num_lane_rows(self) -> float:
        """The mean over the layers."""
        lanes = self.cursor.lanes
        return 0.0 if lanes is None else float(lanes.rows.counts.mean())

    def result(self, advances: Mapping[str, Advance]) -> StepResult:
        """What the scheduler is told of it, once its tokens are with their sequences."""
        tokens = {
            from_lane: {
                request_id: advance.token_id
                for request_id, advance in advances.items()
                if advance.from_lane == from_lane
            }
            for from_lane in (False, True)
        }
        return StepResult(
            sampled=tokens[False],
            lane_sampled=tokens[True],
            finished_ids=frozenset(
                request_id
                for request_id, advance in advances.items()
                if advance.progress.finish_reason is not None
            ),
            num_lane_rows=self.num_lane_rows,
            was_interrupted=self.was_interrupted,
        )
