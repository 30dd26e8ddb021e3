"""What predictions and budgets came to: for whoever reports on how steps are held to objectives."""

from dataclasses import dataclass, replace
from math import inf

from scheduler.step_time import StepCosts, StepShape

_RATE = 0.02
"""Part of the recent error that one step makes up: it is that of about the last fifty."""

OVERHEAD = "overhead"
LS_DECODE, LS_PREFILL = "latency_sensitive_decode", "latency_sensitive_prefill"
BE_DECODE, BE_PREFILL = "best_effort_decode", "best_effort_prefill"
LANES = "lanes"
KINDS = (OVERHEAD, LS_DECODE, LS_PREFILL, BE_DECODE, BE_PREFILL, LANES)
"""Of work, in the order in which a step takes them on."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What was reckoned of a step when its plan was handed out."""

    planned_s: float
    """When, or when the step before it ended, if the engine came right from there."""
    costs: StepCosts
    usual: StepCosts
    """The same at the machine's usual pace."""
    usual_alone: StepCosts
    """At that pace, had it all cores of the device."""
    urgent: StepShape
    """Its latency-sensitive rows."""
    shape: StepShape
    """All its rows; lane rows are not known before it has run."""
    budget_s: float
    is_host_active: bool


class StepBooks:
    """One model's, since its scheduler was made. Takes the same time for every step."""

    def __init__(self) -> None:
        self.num_steps = 0
        """Whose time was predicted, and which nothing interrupted."""
        self.predicted_s = 0.0
        self.measured_s = 0.0
        """Both of those steps."""
        self.mean_error = 0.0
        """Of late: |measured - predicted| / measured."""
        self.budget_s = 0.0
        """Of all steps with latency-sensitive decodes: what these might have taken."""
        self.used_s = dict.fromkeys(KINDS, 0.0)
        """Predicted, of all steps: what each kind of work added to those before it."""
        self.best_effort_s = 0.0
        """Of all steps: by so much best-effort work was predicted to make them longer, by the cores
        that its attention takes as well, at the machine's usual pace: a slow machine is no fault of
        its own."""

    def note(self, step: PlannedStep, num_lane_rows: float, measured_s: float | None) -> None:
        """A step is complete; None where its time tells nothing of it."""
        predicted_s = self._share_out(step, num_lane_rows)
        self.best_effort_s += _best_effort_s(step, num_lane_rows)
        if step.urgent.num_decode_rows and step.budget_s < inf:
            self.budget_s += max(0.0, step.budget_s)
        if measured_s is None or measured_s <= 0.0:
            return
        error = abs(measured_s - predicted_s) / measured_s
        # The first steps are averaged evenly, so that the start counts no more than what follows.
        self.num_steps += 1
        self.mean_error += max(_RATE, 1.0 / self.num_steps) * (error - self.mean_error)
        self.predicted_s += predicted_s
        self.measured_s += measured_s

    def _share_out(self, step: PlannedStep, num_lane_rows: float) -> float:
        """Adds up the step's kinds of work; what it was predicted to take, lane rows included."""
        used_s, step_s = self.used_s, step.costs.step_s
        urgent, shape = step.urgent, step.shape
        before_s = step.costs.overhead_s + step.costs.cold_step_s * shape.coldness
        used_s[OVERHEAD] += before_s
        if urgent.num_decode_rows:
            after_s = step_s(_decodes(urgent))
            used_s[LS_DECODE] += after_s - before_s
            before_s = after_s
        if urgent.num_prefill_tokens:
            after_s = step_s(urgent)
            used_s[LS_PREFILL] += after_s - before_s
            before_s = after_s
        if shape.num_decode_rows > urgent.num_decode_rows:
            after_s = step_s(_with_decodes_of(urgent, shape))
            used_s[BE_DECODE] += after_s - before_s
            before_s = after_s
        if shape.num_prefill_tokens > urgent.num_prefill_tokens:
            after_s = step_s(shape)
            used_s[BE_PREFILL] += after_s - before_s
            before_s = after_s
        if num_lane_rows:
            after_s = step_s(shape.with_lane_rows(num_lane_rows))
            used_s[LANES] += after_s - before_s
            before_s = after_s
        return before_s


def _best_effort_s(step: PlannedStep, num_lane_rows: float) -> float:
    urgent = step.urgent
    is_urgent = urgent.num_decode_rows or urgent.num_prefill_tokens
    urgent_s = step.usual_alone.step_s(urgent) if is_urgent else 0.0
    return max(0.0, step.usual.step_s(step.shape.with_lane_rows(num_lane_rows)) - urgent_s)


def _decodes(shape: StepShape) -> StepShape:
    return StepShape(
        num_decode_rows=shape.num_decode_rows,
        decode_context_tokens=shape.decode_context_tokens,
        num_sampled_rows=min(shape.num_decode_rows, shape.num_sampled_rows),
        coldness=shape.coldness,
    )


def _with_decodes_of(urgent: StepShape, shape: StepShape) -> StepShape:
    """The latency-sensitive rows, with the best-effort decodes beside them."""
    num_more = shape.num_decode_rows - urgent.num_decode_rows
    return replace(
        urgent,
        num_decode_rows=shape.num_decode_rows,
        decode_context_tokens=shape.decode_context_tokens,
        num_sampled_rows=min(shape.num_sampled_rows, urgent.num_sampled_rows + num_more),
    )
