"""Which of two models has the next layer of a device that both share: pure rules, no state.

Latency-sensitive work goes by the time at which it has to be done: of two steps the one that is due
first goes first, which is in time wherever any order is (Jackson 1955). A due time stands still
while a step waits, so two steps never pass each other to and fro. Best-effort work gets the layers
that fit into what latency-sensitive requests can spare, as at ConServe's safepoints.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from scheduler.plan import StepPlan
from scheduler.request import ServiceClass


class Claim(NamedTuple):
    """What the latency-sensitive requests of a model want of the device, on the clock of their
    arrivals; at no time in particular where nothing is known of step times."""

    awaits_first_token: bool
    """Whether a step made now can bring a request nearer its first token."""
    decodes_begin_by_s: float = inf
    """When a step with those that decode has to begin at the latest."""
    prompts_begin_by_s: float = inf
    """The same for those that have had no token yet."""
    step_s: float = 0.0
    """What their next step is reckoned to take."""
    lead_s: float = 0.0
    """By so much those that decode are to be ahead of that time before best-effort work of other
    models delays them: a prompt that comes then has something to take from them."""

    @property
    def begin_by_s(self) -> float:
        return min(self.decodes_begin_by_s, self.prompts_begin_by_s)

    def is_hurried(self, now_s: float) -> bool:
        """Whether a request waits for its first token, or has to have its next one begun."""
        return self.awaits_first_token or self.decodes_begin_by_s <= now_s

    @property
    def due_s(self) -> float:
        """When their next step has to be done."""
        return self.begin_by_s + self.step_s

    def lends_until_s(self, *, by_decodes_only: bool) -> float:
        """When that step has to be done if those that decode keep their lead."""
        begin_by_s = self.decodes_begin_by_s - self.lead_s
        if not by_decodes_only:
            begin_by_s = min(begin_by_s, self.prompts_begin_by_s)
        return begin_by_s + self.step_s


@dataclass(slots=True)
class StandingStep:
    """A step between two of its layers."""

    model: str
    plan: StepPlan
    num_layers: int
    due_s: float = inf
    """When its latency-sensitive tokens have to be there; infinite where it has none, or nothing
    is known of times."""
    next_layer: int = 0
    was_passed: bool = False
    """Whether another step began while it was parked."""
    parked_s: float = 0.0
    """When it was parked last."""
    num_lane_rows: int = 0
    """Most rows from the host that can be in one of its layers."""
    beside_s: float | None = None
    """What it adds to another step, if that runs its layers along; None where this is not known."""

    @property
    def is_urgent(self) -> bool:
        return self.plan.has_latency_sensitive

    @property
    def layer_s(self) -> float:
        return self.plan.predicted_s / self.num_layers

    @property
    def num_best_effort_rows(self) -> int:
        """Most in one of its layers, those from the host among them."""
        best_effort = ServiceClass.BEST_EFFORT
        rows = (each for each in self.plan.rows if each.service_class is best_effort)
        return sum(each.num_tokens for each in rows) + self.num_lane_rows

    @property
    def lanes_s(self) -> float:
        """What rows from the host can add to `StepPlan.predicted_s`."""
        return self.plan.lane_limits.most_s(self.num_lane_rows)

    @property
    def riding_layer_s(self) -> float:
        """What it adds, at most, to a layer that another step runs for both."""
        rows_s = self.plan.predicted_s if self.beside_s is None else self.beside_s
        return (rows_s + self.lanes_s) / self.num_layers

    @property
    def left_s(self) -> float:
        return self.layer_s * (self.num_layers - self.next_layer)

    def slack_s(self, now_s: float) -> float:
        """Time for which it can stand still."""
        return self.due_s - now_s - self.left_s

    def inherit(self, claim: Claim) -> None:
        """Requests of its own model wait for it: it is as urgent as they are."""
        if claim.awaits_first_token:
            self.due_s = min(self.due_s, claim.due_s)

    def as_claim(self, now_s: float) -> Claim:
        """What a parked step with latency-sensitive rows wants of the device."""
        return Claim(False, now_s + self.slack_s(now_s), step_s=self.left_s)


def spare_s(claims: Iterable[Claim], now_s: float, *, by_decodes_only: bool = False) -> float:
    """Time that best-effort work may take of the device before these, one after the other as they
    are due, so that each is in time and keeps its lead; infinite without any."""
    least_s, ends_s = inf, now_s
    # In order of the times themselves: what is the same for all need not be reckoned.
    for due_s, step_s in sorted(
        (each.lends_until_s(by_decodes_only=by_decodes_only), each.step_s) for each in claims
    ):
        ends_s += step_s
        least_s = min(least_s, due_s - ends_s)
    return least_s


def background_s(claims: Mapping[str, Claim], now_s: float, model: str) -> float:
    """Time for layers of a step of `model` without latency-sensitive rows; none while a request
    waits for a first token. Prompts that no step can bring nearer theirs claim nothing.

    Decodes of its own model ask for no lead: best-effort requests that the step holds up could
    otherwise be nowhere else meanwhile.
    """
    if any(claim.awaits_first_token for claim in claims.values()):
        return -inf
    own = claims.get(model)
    if own is not None and own.lead_s:
        claims = {**claims, model: own._replace(lead_s=0.0)}
    return spare_s(claims.values(), now_s, by_decodes_only=True)


def gives_way(step: StandingStep, claim: Claim, now_s: float) -> bool:
    """Whether a step with latency-sensitive rows that stands at a layer boundary lets another
    model's claim pass.

    It does where that would come late behind it and is due before it, and where that waits for a
    first token behind best-effort rows, if the step's own requests do not come late by it. Where
    nothing is known of times it does the latter once.
    """
    if now_s + step.left_s > claim.begin_by_s:
        # Of two that are late already neither passes the other.
        return max(claim.due_s, now_s) < step.due_s
    return (
        claim.awaits_first_token
        and step.plan.has_best_effort
        and claim.step_s <= step.slack_s(now_s)
        and not (step.was_passed and step.due_s == inf)
    )


def begun(
    model: str, plan: StepPlan, num_layers: int, claim: Claim | None, num_offloaded: int = 0
) -> StandingStep:
    """A step before its first layer; `claim` is its model's as it was when the step was planned,
    `num_offloaded` are the model's requests that may have a row on the host."""
    due_s = inf
    if claim is not None and plan.has_latency_sensitive:
        # Its prompts take from its decodes what the planner lets them; best-effort rows may not.
        due_s = claim.begin_by_s + plan.urgent_s
    num_lane_rows = min(plan.max_lane_rows, num_offloaded)
    return StandingStep(model, plan, num_layers, due_s, num_lane_rows=num_lane_rows)


def stands_back(
    step: StandingStep,
    claims: Mapping[str, Claim],
    parked: Iterable[StandingStep],
    now_s: float,
) -> bool:
    """Whether a step that stands at a layer boundary is to be parked there.

    `claims` are by model, of all that have any, `parked` the other steps that stand. Requests of
    a step's own model pass it only where it has no latency-sensitive rows.
    """
    if not step.is_urgent:
        return background_s(claims, now_s, step.model) < step.layer_s
    for model, claim in claims.items():
        if model == step.model:
            step.inherit(claim)
        elif gives_way(step, claim, now_s):
            return True
    return any(each.is_urgent and gives_way(step, each.as_claim(now_s), now_s) for each in parked)
