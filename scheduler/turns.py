"""Which model steps next on a device that several share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from scheduler.best_effort_turns import BestEffortTurns
from scheduler.interleaving import Claim, StandingStep, background_s, gives_way, spare_s
from scheduler.plan import StepPlan

LAYERS_OF_SLACK = 0.5
"""Part of the slack that one layer of a best-effort step may take: the gap is then well filled, and
the step much larger than the gap."""


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What one model could do now."""

    claim: Claim | None
    """Of its latency-sensitive requests; None where it has none."""
    best_effort: bool
    """Whether there is anything to compute for others."""
    best_effort_tokens_beside_ls: int
    num_layers: int = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """A model may step, or go on with a step."""

    model: str
    resumes: StandingStep | None = None
    """The step that goes on; None where a new one begins, as the rest says."""
    latency_sensitive_only: bool = False
    best_effort_tokens: int | None = None
    """Most best-effort rows; None leaves it free."""
    best_effort_s: float = inf
    """Time of the step, if it has any best-effort rows."""


class ModelTurns:
    """Latency-sensitive steps in the order in which they are due, best-effort ones in the gaps.

    A gap opens after each round of the latency-sensitive models, unless someone waits for a first
    token. In it a model with best-effort work alone begins a step, of which as many layers run as
    latency-sensitive requests can spare the time for; the rest follow in later gaps. Where nothing
    is known of times that step is a small one. No other such step begins before it has ended, save
    those that ride with another model's; there is at most one parked step with latency-sensitive
    rows, and one without, of each model.
    """

    def __init__(self) -> None:
        self._least_recent_first: list[str] = []
        self._num_ls_turns = 0
        self._best_effort = BestEffortTurns()

    def next(
        self,
        demands: Mapping[str, ModelDemand],
        parked: Sequence[StandingStep] = (),
        now_s: float = 0.0,
    ) -> Turn | None:
        """The next turn, or None where no model has anything to run.

        Models are those of `demands`: new ones join behind the others, those that are gone are
        forgotten. `parked` are steps that stand between two layers, in any order.
        """
        self._follow(demands)
        claims = {
            name: claim
            for name in self._least_recent_first
            if (claim := demands[name].claim) is not None
        }
        patient = [
            name
            for name in self._least_recent_first
            if demands[name].best_effort and name not in claims
        ]
        background = [step for step in parked if not step.is_urgent]
        self._best_effort.follow([*patient, *(step.model for step in background)])
        begun = [step for step in parked if step.is_urgent]
        if begun:
            return self._among_begun(begun, background, claims, now_s)
        if background:
            return self._beside_background(background, claims, patient, demands, now_s)
        if not claims:
            self._num_ls_turns = 0
            return self._take(self._best_effort.next(patient)) if patient else None
        if patient and self._num_ls_turns >= len(claims):
            slack_s = spare_s(claims.values(), now_s)
            awaited = any(claim.awaits_first_token for claim in claims.values())
            if slack_s > 0.0 and not awaited:
                return self._fill_gap(self._best_effort.next(patient), demands, slack_s)
        return self._urgent_turn(claims, patient, demands, now_s)

    def note_begun(self, plan: StepPlan, model: str) -> None:
        """The turn came to this step: its best-effort rows are service that their model had."""
        self._best_effort.charge(model, plan)

    def least_served_first(self, models: Iterable[str]) -> list[str]:
        """In order of the best-effort service that they had."""
        return self._best_effort.least_served_first(models)

    def note_riding(self, step: StandingStep, num_shared_layers: int) -> None:
        """A step began that goes along with another model's: service, but nobody's turn."""
        shared = num_shared_layers / step.num_layers
        self._best_effort.charge_rider(step.model, step.plan, step.beside_s or 0.0, shared)

    def _among_begun(
        self,
        begun: Sequence[StandingStep],
        background: Sequence[StandingStep],
        claims: dict[str, Claim],
        now_s: float,
    ) -> Turn:
        for step in begun:
            claim = claims.pop(step.model, None)
            if claim is not None:
                step.inherit(claim)
        first = min(begun, key=lambda step: step.due_s)
        before = {name: each for name, each in claims.items() if gives_way(first, each, now_s)}
        if not before:
            return Turn(first.model, first)
        self._num_ls_turns += 1
        model = _due_first(before, now_s)
        if any(step.model == model for step in background):
            return self._take(model, latency_sensitive_only=True)
        return self._take(model, best_effort_tokens=0)

    def _beside_background(
        self,
        background: Sequence[StandingStep],
        claims: dict[str, Claim],
        patient: Sequence[str],
        demands: Mapping[str, ModelDemand],
        now_s: float,
    ) -> Turn:
        if background_s(claims, now_s, background[0].model) >= background[0].layer_s:
            self._num_ls_turns = 0
            return Turn(background[0].model, background[0])
        # Where nothing is known of times, it is for a first token.
        hurried = {
            name: claim
            for name, claim in claims.items()
            if claim.awaits_first_token or claim.due_s < inf
        }
        first = _due_first(hurried, now_s)
        begun = [step.model for step in background]
        if first in begun:
            self._num_ls_turns += 1
            return self._take(first, latency_sensitive_only=True)
        return self._urgent_turn(claims, [*patient, *begun], demands, now_s, first)

    def _fill_gap(self, model: str, demands: Mapping[str, ModelDemand], slack_s: float) -> Turn:
        self._num_ls_turns = 0
        demand = demands[model]
        if slack_s == inf:
            return self._take(model, best_effort_tokens=demand.best_effort_tokens_beside_ls)
        return self._take(model, best_effort_s=LAYERS_OF_SLACK * slack_s * demand.num_layers)

    def _urgent_turn(
        self,
        claims: Mapping[str, Claim],
        patient: Sequence[str],
        demands: Mapping[str, ModelDemand],
        now_s: float,
        model: str | None = None,
    ) -> Turn:
        """With best-effort rows of its own model, which take no more time than the requests of all
        other models can spare."""
        self._num_ls_turns += 1
        model = model or _due_first(claims, now_s)
        awaited = any(claim.awaits_first_token for claim in claims.values())
        others = [claim for name, claim in claims.items() if name != model]
        withheld = not awaited and self._best_effort.is_withheld(model, patient)
        return self._take(
            model,
            best_effort_tokens=0 if withheld else None,
            best_effort_s=max(0.0, spare_s(others, now_s)),
        )

    def _follow(self, demands: Mapping[str, ModelDemand]) -> None:
        order = self._least_recent_first
        if len(order) != len(demands) or not all(name in demands for name in order):
            kept = [name for name in order if name in demands]
            kept += [name for name in demands if name not in kept]
            self._least_recent_first = kept
            self._best_effort.keep(demands)

    def _take(
        self,
        model: str,
        *,
        latency_sensitive_only: bool = False,
        best_effort_tokens: int | None = None,
        best_effort_s: float = inf,
    ) -> Turn:
        self._least_recent_first.remove(model)
        self._least_recent_first.append(model)
        return Turn(model, None, latency_sensitive_only, best_effort_tokens, best_effort_s)


def _due_first(claims: Mapping[str, Claim], now_s: float) -> str:
    """Of those that are late already, and of those of which nothing is known, the first: they are
    in the order in which they were served."""
    return min(claims, key=lambda name: max(claims[name].due_s, now_s))
