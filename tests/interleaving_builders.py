"""A device that several models share, with nothing of it but the policy and a clock that is set."""

from dataclasses import dataclass, field
from math import inf

from scheduler import Claim, ModelDemand, ModelTurns, PlannedRows, ServiceClass, StepPlan, Turn
from scheduler.interleaving import StandingStep, begun, stands_back

LS, BE = ServiceClass.LATENCY_SENSITIVE, ServiceClass.BEST_EFFORT


def make_plan(*, ls_s: float = 0.0, be_s: float = 0.0) -> StepPlan:
    """A step whose rows of a class take so long; of a class that takes no time it has none."""
    rows = tuple(
        PlannedRows(f"{service_class.name}", 0, service_class, 0, 1, (1,), True, 0, ())
        for service_class, seconds in ((LS, ls_s), (BE, be_s))
        if seconds
    )
    return StepPlan(0, rows, predicted_s=ls_s + be_s, urgent_s=ls_s)


@dataclass(frozen=True)
class Job:
    """A latency-sensitive step that somebody needs."""

    model: str
    arrival_s: float
    step_s: float
    slack_s: float
    """On its arrival."""
    is_first: bool = False

    @property
    def due_s(self) -> float:
        return self.arrival_s + self.slack_s + self.step_s

    @property
    def claim(self) -> Claim:
        by_s = self.arrival_s + self.slack_s
        prompts, decodes = (by_s, inf) if self.is_first else (inf, by_s)
        return Claim(self.is_first, decodes, prompts, self.step_s)


@dataclass(frozen=True)
class Layer:
    """One layer of a step was run."""

    began_s: float
    step: StandingStep
    due_s: float
    """Of the step, then."""
    claims: dict[str, Claim]
    """Of other models, that the policy knew when it chose this layer, and could have begun: not of
    those of which a latency-sensitive step stands already."""


@dataclass
class SharedDevice:
    """Runs jobs and an endless backlog of some models; times are exactly as predicted."""

    jobs: list[Job]
    backlogs: dict[str, float] = field(default_factory=dict)
    """Models with best-effort work, and what a whole step of it takes."""
    riders: dict[str, float] = field(default_factory=dict)
    """Models of which latency-sensitive steps carry best-effort rows, and what these add."""
    num_layers: int = 8
    now_s: float = 0.0
    layers: list[Layer] = field(default_factory=list)
    ended_s: dict[Job, float] = field(default_factory=dict)
    num_parked: int = 0
    num_begun: int = 0
    idle_s: float = 0.0

    def __post_init__(self) -> None:
        self._turns = ModelTurns()
        self._parked: list[StandingStep] = []
        self._waiting: list[Job] = []
        self._coming = sorted(self.jobs, key=lambda job: job.arrival_s)
        self._job_of: dict[int, Job] = {}
        self._steps: list[StandingStep] = []
        names = {job.model for job in self.jobs} | set(self.backlogs)
        self._names = sorted(names)

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            self._receive()
            demands = {name: self._demand(name) for name in self._names}
            turn = self._turns.next(demands, self._parked, self.now_s)
            if turn is None:
                assert not self._waiting and not self._parked and not self.backlogs, "idle"
                if not self._coming:
                    return
                self.idle_s += self._coming[0].arrival_s - self.now_s
                self.now_s = self._coming[0].arrival_s
                continue
            self._go_on(turn)

    def _receive(self) -> None:
        while self._coming and self._coming[0].arrival_s <= self.now_s:
            self._waiting.append(self._coming.pop(0))

    def _first(self, model: str) -> Job | None:
        jobs = [job for job in self._waiting if job.model == model]
        return min(jobs, key=lambda job: job.due_s, default=None)

    def _demand(self, name: str) -> ModelDemand:
        job = self._first(name)
        claim = None if job is None else job.claim
        return ModelDemand(claim, name in self.backlogs, 64, self.num_layers)

    def _go_on(self, turn: Turn) -> None:
        step = turn.resumes
        if step is not None:
            self._parked.remove(step)
        else:
            step = self._begin(turn)
        while step.next_layer < step.num_layers:
            standing = {each.model for each in self._parked if each.is_urgent}
            claims = {
                name: job.claim
                for name in self._names
                if name not in standing and (job := self._first(name)) is not None
            }
            self.layers.append(Layer(self.now_s, step, step.due_s, claims))
            self.now_s += step.layer_s
            step.next_layer += 1
            self._receive()
            if step.next_layer == step.num_layers:
                break
            claims = {
                name: job.claim for name in self._names if (job := self._first(name)) is not None
            }
            if stands_back(step, claims, self._parked, self.now_s):
                self._parked.append(step)
                self.num_parked += 1
                return
        job = self._job_of.pop(id(step), None)
        if job is not None:
            self.ended_s[job] = self.now_s

    def _begin(self, turn: Turn) -> StandingStep:
        self.num_begun += 1
        job = self._first(turn.model)
        if job is not None:
            self._waiting.remove(job)
            rides = turn.best_effort_tokens is None and not turn.latency_sensitive_only
            most_s = max(0.0, turn.best_effort_s - job.step_s)
            rider_s = min(self.riders.get(turn.model, 0.0), most_s) if rides else 0.0
            plan = make_plan(ls_s=job.step_s, be_s=rider_s)
        else:
            plan = make_plan(be_s=min(self.backlogs[turn.model], turn.best_effort_s))
        for each in self._parked:
            each.was_passed = True
        self._turns.note_begun(plan, turn.model)
        step = begun(turn.model, plan, self.num_layers, None if job is None else job.claim)
        if job is not None:
            self._job_of[id(step)] = job
        self._steps.append(step)
        return step
