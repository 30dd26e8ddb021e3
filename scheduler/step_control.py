"""How long a step may take, and what became of that: predictions, held to real steps."""

from collections.abc import Iterable, Sequence

from scheduler.aim import Aims
from scheduler.pace import Allowed, Pace
from scheduler.plan import StepPlan
from scheduler.request import Request
from scheduler.step_books import PlannedStep, StepBooks
from scheduler.step_load import StepLoad
from scheduler.step_refit import StepRefit
from scheduler.step_time import LinearStepTime, StepCosts, coldness_after

LEAST_PROMPT_SHARE = 0.1
"""Of the device that prompts get beside decodes, however little time these leave."""

_LOOP_S = 1e-3
"""From a step's end to the planning of the next, at most, where an engine goes on: messages out and
in are part of what a step takes. Where it took longer it waited, or had other models to run."""


class StepControl:
    """One model's. Without step times nothing is predicted, and no step is limited in time."""

    def __init__(self, step_time: LinearStepTime | None) -> None:
        self._refits: dict[bool, StepRefit] = {}
        if step_time is not None:
            alone = StepRefit(step_time.alone)
            beside = step_time.beside_host
            self._refits = {False: alone, True: alone if beside is None else StepRefit(beside)}
        self.aims = Aims()
        self.pace = Pace(self.aims)
        self.books = StepBooks()
        self.now_s = 0.0
        """When the plan that is being made was asked for."""
        self.starts_s = 0.0
        """When its step begins, as far as is predicted."""
        self._is_host_active = False
        self._overtakes = False
        self._coldness = 0.0
        """At which the next step to be planned begins."""
        self._busy_until_s = 0.0
        """When the plans in flight are done, as far as is predicted."""
        self._urgent_until_s = 0.0
        """Of those with latency-sensitive rows."""
        self._last_landed_s = 0.0
        self._elsewhere_s = 0.0
        """Between its steps: other models ran, or nothing did."""
        self._planned: dict[int, PlannedStep] = {}

    @property
    def is_predicting(self) -> bool:
        return bool(self._refits)

    def begin(
        self, now_s: float, *, is_host_active: bool, overtakes: bool = False
    ) -> StepLoad | None:
        """A plan is being made now; its load, where step times are known. One that overtakes does
        not wait for steps in flight without latency-sensitive rows."""
        self.now_s, self._is_host_active = now_s, is_host_active
        self._overtakes = overtakes
        self.starts_s = max(now_s, self._urgent_until_s if overtakes else self._busy_until_s)
        if not self._refits:
            return None
        return StepLoad(self.costs, self._coldness)

    @property
    def taken_s(self) -> float:
        """What best-effort work and other models have taken so far; of two times, the difference
        tells by how much they delayed who had something to run all the while."""
        return self.books.best_effort_s + self._elsewhere_s

    @property
    def costs(self) -> StepCosts:
        """Of the next step, with or without the host's cores as the last one was planned."""
        return self._refits[self._is_host_active].costs_now

    @property
    def costs_alone(self) -> StepCosts:
        """Of steps that have all cores of the device."""
        return self._refits[False].costs

    @property
    def costs_beside_host(self) -> StepCosts | None:
        """Of steps without the cores of the host; None where that makes no difference."""
        alone, beside = self._refits.get(False), self._refits.get(True)
        return None if beside is None or beside is alone else beside.costs

    def allowed(self, running: Iterable[Request], fastest_s: float) -> Allowed:
        """That a step with the decodes among `running` may take; `fastest_s` is the least."""
        if not self._refits:
            return Allowed()
        found = self.pace.allowed(running, self.starts_s, fastest_s)
        return found._replace(
            by_savable_s=max(fastest_s, found.by_savable_s),
            by_lost_s=max(fastest_s, found.by_lost_s),
        )

    def decodes_claim(self, decodes: Sequence[Request], now_s: float) -> tuple[Allowed, float]:
        """Time until the next tokens of these have to be there, and what a step with them takes at
        least."""
        if not self._refits or not decodes:
            return Allowed(), 0.0
        load = StepLoad(self.costs, self._coldness)
        load.add_decodes([request.num_scheduled for request in decodes])
        fastest_s = load.seconds
        starts_s = max(now_s, self._urgent_until_s)
        return self.pace.allowed(decodes, starts_s, fastest_s), fastest_s

    def beside_s(self, plan: StepPlan, num_rows: int) -> float | None:
        """What a plan in flight takes if its weights are read for `num_rows` other rows anyway;
        None where nothing is known of times."""
        step = self._planned.get(plan.plan_id)
        if step is None:
            return None
        costs, shape = step.costs, step.shape
        own_rows = shape.num_decode_rows + shape.num_prefill_tokens
        alone_s = costs.step_s(shape)
        if not own_rows or not num_rows:
            return alone_s
        together_s = costs.dense_s(num_rows + own_rows) - costs.dense_s(num_rows)
        return max(0.0, alone_s - costs.dense_s(own_rows) + together_s)

    def stood_back(self, waited_s: float) -> None:
        """A step in flight with latency-sensitive rows let other models pass for so long."""
        self._elsewhere_s += waited_s
        self._busy_until_s += waited_s
        self._urgent_until_s += waited_s

    def urgent_residual_s(self, now_s: float) -> float:
        """Until the steps in flight with latency-sensitive rows are done: nothing interrupts
        them."""
        return max(0.0, self._urgent_until_s - now_s)

    def depart(self, plan: StepPlan, load: StepLoad) -> None:
        """The plan is handed out."""
        since_s = 0.0 if self._planned else self.now_s - self._last_landed_s
        comes_from_step = not self._planned and since_s <= _LOOP_S
        if not comes_from_step:
            self._elsewhere_s += since_s
        self._planned[plan.plan_id] = PlannedStep(
            self._last_landed_s if comes_from_step else self.now_s,
            self.costs,
            self._refits[self._is_host_active].costs,
            self.costs_alone,
            load.urgent_shape,
            load.shape,
            plan.budget_s,
            self._is_host_active,
        )
        self._coldness = coldness_after(self._coldness, load.num_rows)
        ends_s = self.starts_s + load.seconds
        # What it overtakes goes on behind it.
        is_behind = self._overtakes and self._busy_until_s > self.starts_s
        self._busy_until_s = self._busy_until_s + load.seconds if is_behind else ends_s
        if plan.has_latency_sensitive:
            self._urgent_until_s = ends_s

    def drop(self, plan: StepPlan, now_s: float) -> None:
        """The plan comes to nothing: what its step took tells nothing."""
        if self._planned.pop(plan.plan_id, None) is not None and not self._planned:
            self._busy_until_s = self._urgent_until_s = now_s

    def land(
        self, plan: StepPlan, now_s: float, num_lane_rows: float, *, is_undisturbed: bool
    ) -> None:
        """The plan is complete, and had so many lane rows at each layer, on average."""
        step = self._planned.pop(plan.plan_id, None)
        if step is None:
            return
        measured_s = now_s - max(step.planned_s, self._last_landed_s)
        self._last_landed_s = now_s
        if not self._planned:
            self._busy_until_s = self._urgent_until_s = now_s
        is_telling = is_undisturbed and bool(plan.rows)
        self.books.note(step, num_lane_rows, measured_s if is_telling else None)
        if is_telling:
            shape = step.shape.with_lane_rows(num_lane_rows)
            self._refits[step.is_host_active].observe(shape, measured_s)
