"""One simulated model: a real scheduler, and a model of what its steps take."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import inf
from random import Random

from omniserve.engine.admission import Admission
from omniserve.profiling.profile import Profile
from omniserve.requests import TierRules
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.lanes import SimulatedLanes
from omniserve.simulate.engine.step import SimulatedStep, joint_shape, lay_out
from scheduler import Claim, ModelDemand, Request, Scheduler, StepResult
from scheduler.first_token_forecast import UrgentLoad
from scheduler.step_time import coldness_after

_ANY_TOKEN = 0
"""What is sampled does not matter to the policy."""


class SimulatedModel:
    """What `omniserve.engine.model_runtime.ModelRuntime` is to a real model."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        scheduler: Scheduler,
        lanes: SimulatedLanes | None,
        random: Random,
        clock: Clock,
        layer_keys: Sequence[str] = (),
    ) -> None:
        """Layers with the same key are one layer in all models that have it; without keys all are
        the model's own."""
        self.name = name
        self.profile = profile
        self.scheduler = scheduler
        self.lanes = lanes
        self.num_steps = 0
        self._costs = profile.step_time
        self._ratios = profile.step_ratio_quantiles
        self._random = random
        self._layer_keys = tuple(layer_keys)
        self._clock = clock
        self._coldness = 0.0
        self._admission = Admission(scheduler)
        self._in_flight: deque[SimulatedStep] = deque()
        self._unfinished_ids: set[str] = set()

    @property
    def num_layers(self) -> int:
        return self.profile.num_layers

    @property
    def has_unfinished(self) -> bool:
        if self.lanes is not None and self.lanes.is_settling:
            return True
        return self.scheduler.has_unfinished or bool(self._in_flight)

    @property
    def oldest_done_s(self) -> float | None:
        """When the oldest step in flight will be done; None where none is."""
        return self._in_flight[0].done_s if self._in_flight else None

    @property
    def is_pipeline_full(self) -> bool:
        """Whether a step must be collected before the next one is planned."""
        is_full = len(self._in_flight) >= self.profile.pipeline_depth
        return is_full or not self.scheduler.has_unfinished

    def num_layers_shared_with(self, other: "SimulatedModel") -> int:
        """The first layers that both have in common."""
        pairs = zip(self._layer_keys, other._layer_keys, strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def shares_layer(self, other: "SimulatedModel", index: int) -> bool:
        mine, theirs = self._layer_keys, other._layer_keys
        return index < min(len(mine), len(theirs)) and mine[index] == theirs[index]

    def can_capture(self, step: SimulatedStep) -> bool:
        """Whether the device is taken to run such layers as captured graphs: an accelerator, a
        step of decodes alone."""
        return self.profile.pipeline_depth > 1 and not step.resident.num_prefill_tokens

    def demand(self, *, is_alone: bool) -> ModelDemand:
        scheduler = self.scheduler
        if is_alone:
            is_there = scheduler.has_latency_sensitive_work
            claim = Claim(scheduler.awaits_first_token) if is_there else None
        else:
            claim = scheduler.claim(self._clock.now_s)
        return ModelDemand(
            claim=claim,
            best_effort=self.has_unfinished,
            best_effort_tokens_beside_ls=scheduler.settings.best_effort_tokens_beside_ls,
            num_layers=self.num_layers,
        )

    def urgent_load(self) -> UrgentLoad:
        """What its latency-sensitive requests need of the device."""
        return self.scheduler.ttft_forecast.load

    def add(self, request: Request, rules: TierRules, others: Iterable[UrgentLoad] = ()) -> None:
        """ValueError where it could never run; Overloaded or DeadlineExceeded as an engine says."""
        self._admission.judge(request, rules, self._clock.now_s, others)
        self.scheduler.add(request)
        self._unfinished_ids.add(request.request_id)

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self._unfinished_ids.discard(request_id)
        self._settle()

    def poll(self) -> None:
        if self.lanes is not None:
            self.lanes.poll()

    def note_landed_copies(self) -> None:
        """Amid a step: the part of `poll` that may free memory for latency-sensitive work."""
        if self.lanes is not None and self.scheduler.has_latency_sensitive_work:
            self.lanes.note_landed_copies()

    def begin(
        self,
        *,
        host_active: bool,
        latency_sensitive_only: bool = False,
        best_effort_tokens: int | None = None,
        best_effort_s: float = inf,
    ) -> SimulatedStep | None:
        """Plans a step; None if there is nothing to do."""
        lanes = self.lanes
        plan = self.scheduler.schedule(
            latency_sensitive_only=latency_sensitive_only,
            best_effort_tokens=best_effort_tokens,
            best_effort_s=best_effort_s,
            num_ready_lane_rows=0 if lanes is None else lanes.num_ready_rows,
            now_s=self._clock.now_s,
            is_host_active=host_active,
        )
        if lanes is not None:
            lanes.begin_copies()
        if plan is None:
            return None
        rows = None if lanes is None else lanes.begin_step(plan)
        step = lay_out(plan, rows, self._draw_ratio(), self._coldness)
        self._coldness = coldness_after(self._coldness, plan.num_tokens)
        return step

    def begin_stretch(self, step: SimulatedStep, host_active: bool) -> None:
        """Binds lane rows that have come, and prices the layers up to the next binding."""
        first, step.stop_layer = step.next_layer, self.num_layers
        if self.lanes is not None and step.lanes is not None:
            self.lanes.bind(step.lanes, first)
            step.stop_layer = self.lanes.binding_stops[first]
        shape = step.shape(first, step.stop_layer)
        costs = self._costs.costs(host_active)
        layers_s = costs.step_s(shape) - costs.overhead_s
        if self.profile.pipeline_depth == 1:
            # Where nobody is, nothing is computed; a graph of the whole step computes everywhere.
            layers_s *= step.busy_share(first, step.stop_layer)
        step.layer_s = layers_s * step.time_ratio / self.num_layers

    def joint_layer_s(self, steps: Sequence[SimulatedStep], host_active: bool) -> float:
        """Of the next layer, run once for rows of all these steps, the first of which is this
        model's: what it would take if all rows were this model's."""
        costs = self._costs.costs(host_active)
        shapes = [each.shape(each.next_layer, each.stop_layer) for each in steps]
        layers_s = costs.step_s(joint_shape(shapes)) - costs.overhead_s
        return layers_s * steps[0].time_ratio / self.num_layers

    def overhead_s(self, step: SimulatedStep, host_active: bool) -> float:
        """Host time of the step that no layer takes."""
        return self._costs.costs(host_active).overhead_s * step.time_ratio

    def pass_layers(self, step: SimulatedStep, num_layers: int, started_s: float) -> None:
        """So many layers more are done, the first of which began at `started_s` on the device."""
        first, step.next_layer = step.next_layer, step.next_layer + num_layers
        if self.lanes is not None and step.lanes is not None:
            self.lanes.leave(step.lanes, range(first, step.next_layer), started_s, step.layer_s)

    def finish(self, step: SimulatedStep) -> None:
        """All its layers are done, or given to the device."""
        if self.lanes is not None and step.lanes is not None:
            step.lane_ids = self.lanes.end_step(step.lanes)
        self._in_flight.append(step)

    def drop(self, step: SimulatedStep) -> None:
        """It is not gone on with; its tokens are computed again."""
        self.scheduler.drop(step.plan, self._clock.now_s)
        self._settle()

    def collect(self) -> tuple[list[str], tuple[Request, ...]]:
        """The oldest step in flight is done: requests with a token more, and those that ended."""
        step = self._in_flight.popleft()
        sampled, from_lanes = step.sampled_ids, step.lane_ids
        if from_lanes:
            # One that was aborted while its row was in the step is nobody's any more.
            from_lanes = [each for each in from_lanes if each in self._unfinished_ids]
        result = StepResult(
            dict.fromkeys(sampled, _ANY_TOKEN),
            dict.fromkeys(from_lanes, _ANY_TOKEN),
            num_lane_rows=step.num_lane_rows,
            was_interrupted=step.was_interrupted,
        )
        finished = self.scheduler.complete(step.plan, result, self._clock.now_s)
        for request in finished:
            self._unfinished_ids.discard(request.request_id)
        self._settle()
        self.num_steps += 1
        return sampled + from_lanes, finished

    def _settle(self) -> None:
        if self.lanes is not None:
            self.lanes.stop_released()

    def _draw_ratio(self) -> float:
        ratios = self._ratios
        if not ratios:
            return 1.0
        # Between two quantiles every value is as likely.
        place = self._random.random() * (len(ratios) - 1)
        index = int(place)
        if index + 1 == len(ratios):
            return ratios[-1]
        return ratios[index] + (place - index) * (ratios[index + 1] - ratios[index])
