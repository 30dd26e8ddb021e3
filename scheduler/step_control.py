"""How long a step may take, and what became of that: predictions, held to real steps."""

from collections.abc import Iterable, Sequence
from math import inf

from scheduler.aim import Aims
from scheduler.first_token_forecast import queue_s
from scheduler.pace import Pace
from scheduler.plan import StepPlan
from scheduler.request import Request
from scheduler.step_load import StepLoad
from scheduler.step_refit import StepRefit
from scheduler.step_time import LinearStepTime, StepShape


class StepControl:
    """One model's. Without step times nothing is predicted, and no step is limited in time."""

    def __init__(self, step_time: LinearStepTime | None) -> None:
        self._refits: dict[bool, StepRefit] = {}
        if step_time is not None:
            alone = StepRefit(step_time.alone)
            beside = step_time.beside_host
            self._refits = {False: alone, True: alone if beside is None else StepRefit(beside)}
        self.pace = Pace(Aims())
        self.now_s = 0.0
        """When the plan that is being made was asked for."""
        self._is_host_active = False
        self._busy_until_s = 0.0
        """When the plans in flight are done, as far as is predicted."""
        self._last_landed_s = 0.0
        self._planned: dict[int, tuple[float, StepShape, bool]] = {}

    @property
    def is_predicting(self) -> bool:
        return bool(self._refits)

    def begin(self, now_s: float, *, is_host_active: bool) -> StepLoad | None:
        """A plan is being made now; its load, where step times are known."""
        self.now_s, self._is_host_active = now_s, is_host_active
        if not self._refits:
            return None
        return StepLoad(self._refits[is_host_active].costs)

    @property
    def starts_s(self) -> float:
        """When the step that is being planned begins."""
        return max(self.now_s, self._busy_until_s)

    def allowed_s(self, running: Iterable[Request], fastest_s: float) -> float:
        """That a step with the decodes among `running` may take; `fastest_s` is the least."""
        if not self._refits:
            return inf
        return max(fastest_s, self.pace.allowed_s(running, self.starts_s, fastest_s))

    def slack_s(self, decodes: Sequence[Request], now_s: float) -> float:
        """Time that other models may take before a step with these has to begin."""
        if not self._refits or not decodes:
            return inf
        load = StepLoad(self._refits[self._is_host_active].costs)
        for request in decodes:
            load.add(request.num_scheduled, 1, samples=True)
        fastest_s = load.seconds
        starts_s = max(now_s, self._busy_until_s)
        return self.pace.allowed_s(decodes, starts_s, fastest_s) - fastest_s

    def until_first_tokens_s(self, awaited: Iterable[Request]) -> float:
        """That a step may take before the prompts of `awaited`, so that what is left of each can
        still be computed in time; requests whose time has passed hold up nobody."""
        if not self._refits:
            return inf
        costs = self._refits[False].costs
        least_s = inf
        for request in awaited:
            if request.objectives is None:
                continue
            due_s = request.arrival_s + request.objectives.ttft_s - self.starts_s
            num_left = len(request.token_ids) - request.num_scheduled
            if num_left > 0:
                due_s -= StepLoad(costs).seconds_with(request.num_scheduled, num_left)
            if due_s > 0.0:
                least_s = min(least_s, due_s)
        return least_s

    def first_token_s(
        self, prompts: Sequence[Request], decodes: Sequence[Request], max_step_tokens: int
    ) -> float:
        """From now until all `prompts` have had their first tokens, beside `decodes`."""
        costs = self._refits[self._is_host_active].costs
        token_s = self.pace.tightest_s(decodes)
        return queue_s(costs, prompts, decodes, token_s, max_step_tokens)

    def depart(self, plan: StepPlan, load: StepLoad) -> None:
        """The plan is handed out."""
        shape = load.shape
        self._planned[plan.plan_id] = (self.now_s, shape, self._is_host_active)
        self._busy_until_s = self.starts_s + load.seconds

    def land(
        self, plan: StepPlan, now_s: float, num_lane_rows: float, *, is_undisturbed: bool
    ) -> None:
        """The plan is complete, and had so many lane rows at each layer, on average."""
        planned = self._planned.pop(plan.plan_id, None)
        if planned is None:
            return
        planned_s, shape, is_host_active = planned
        began_s = max(planned_s, self._last_landed_s)
        self._last_landed_s = now_s
        if not self._planned:
            self._busy_until_s = now_s
        if is_undisturbed and plan.rows:
            self._refits[is_host_active].observe(
                shape.with_lane_rows(num_lane_rows), now_s - began_s
            )
