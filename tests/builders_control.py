"""Requests with objectives, and a scheduler on a clock that its own predictions move."""

from array import array

from scheduler import Objectives, Request, Scheduler, SchedulerSettings, ServiceClass, StepResult
from scheduler.plan import StepPlan
from scheduler.plan_shape import shape_of
from scheduler.step_time import LinearStepTime, StepCosts

COSTS = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 5e-3), (8, 7e-3), (64, 40e-3), (256, 160e-3)),
    decode_context_token_s=2e-6,
    prefill_pair_s=2e-8,
    prefill_step_s=5e-4,
    sampled_row_s=5e-5,
)
SETTINGS = SchedulerSettings(
    num_blocks=128,
    block_size=16,
    max_running_requests=32,
    max_step_tokens=128,
    best_effort_tokens_beside_ls=128,
    max_model_len=512,
    prefix_caching=False,
)


def make_request(
    name: str,
    num_tokens: int,
    max_tokens: int,
    arrival_s: float = 0.0,
    objectives: Objectives | None = None,
    demote_after_tokens: int | None = None,
) -> Request:
    is_urgent = objectives is not None
    return Request(
        request_id=name,
        service_class=ServiceClass.LATENCY_SENSITIVE if is_urgent else ServiceClass.BEST_EFFORT,
        tier="chat" if is_urgent else "batch",
        arrival_s=arrival_s,
        token_ids=array("q", [1] * num_tokens),
        max_tokens=max_tokens,
        objectives=objectives,
        demote_after_tokens=demote_after_tokens,
    )


class Clocked:
    """A scheduler on a clock: each step takes what its plan is reckoned to take, times a factor."""

    def __init__(
        self,
        factor: float = 1.0,
        *,
        settings: SchedulerSettings = SETTINGS,
        costs: StepCosts = COSTS,
    ) -> None:
        self.scheduler = Scheduler(settings, step_time=LinearStepTime(costs))
        self._costs = costs
        self.now_s = 0.0
        self.plans: list[StepPlan] = []
        self._factor = factor

    def step(self) -> list[Request]:
        """Those that finished; time stands still where there is nothing to do."""
        plan = self.scheduler.schedule(now_s=self.now_s)
        if plan is None:
            return []
        self.plans.append(plan)
        self.now_s += self._factor * self._costs.step_s(shape_of(plan))
        sampled = {rows.request_id: 1 for rows in plan.rows if rows.samples}
        done = self.scheduler.complete(plan, StepResult(sampled), now_s=self.now_s)
        self.scheduler.check_integrity()
        return list(done)

    def run(self) -> list[Request]:
        done = []
        while self.scheduler.has_unfinished:
            done += self.step()
        return done


def chat(name: str, arrival_s: float = 0.0, max_tokens: int = 40) -> Request:
    return make_request(name, 20, max_tokens, arrival_s, Objectives(0.5, 15e-3))
