"""A simulated engine: the rules of `omniserve.engine.core.Engine` on a clock that is set."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from math import inf

from omniserve.errors import OmniServeError
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.driver import Arrival, OnRefused, OnTokens
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.engine.step import SimulatedStep
from omniserve.simulate.engine.stretch import Stretch
from scheduler import Claim, HostCoresRule, ModelTurns, ServiceClass, StandingStep, Turn
from scheduler.interleaving import background_s, begun, stands_back
from scheduler.urgent_pressure import pressure_on

_HOST_POLL_S = 0.05
"""Longest sleep where all there is to do is on the host: the governor may change its mind."""
_EARLY = 1e-9
"""Times that differ by less are the same time."""


@dataclass(slots=True)
class _Begun:
    """A step on the device, and what the policy knows of it."""

    model: SimulatedModel
    step: SimulatedStep
    standing: StandingStep


class SimulatedEngine:
    """Runs whenever its driver sets the clock to `wake_s` and calls `run`."""

    def __init__(
        self,
        models: dict[str, SimulatedModel],
        clock: Clock,
        queue: HostQueue,
        on_tokens: OnTokens,
        on_refused: OnRefused,
    ) -> None:
        """`on_tokens` and `on_refused` are called at the time at which it happens."""
        self.models = models
        self.wake_s = inf
        """When it wants to go on, unless something arrives before."""
        self._clock = clock
        self._queue = queue
        self._on_tokens = on_tokens
        self._on_refused = on_refused
        self._inbox: list[Arrival | str] = []
        self._turns = ModelTurns()
        self._host_cores = HostCoresRule()
        self._parked: list[_Begun] = []
        self._stretch: Stretch | None = None
        self._is_dozing = True
        self._device_free_s = 0.0
        self._stolen_s = 0.0
        self._work = self._serve()

    def submit(self, arrival: Arrival) -> None:
        """A request arrives now; the engine looks at it when it next looks up."""
        self._inbox.append(arrival)
        is_urgent = arrival.request.service_class is ServiceClass.LATENCY_SENSITIVE
        if self._is_dozing:
            self.wake_s = min(self.wake_s, self._clock.now_s)
        elif is_urgent and self._stretch is not None:
            self.wake_s = min(self.wake_s, self._stretch.boundary_s(self._clock.now_s))

    def abort(self, request_id: str) -> None:
        """Forget a request when the engine next looks up."""
        self._inbox.append(request_id)
        if self._is_dozing:
            self.wake_s = min(self.wake_s, self._clock.now_s)

    def run(self) -> None:
        """Goes on until it next has to wait, and says until when in `wake_s`."""
        next(self._work)

    def check_integrity(self) -> None:
        """Raises an AssertionError where the books of requests, blocks, lanes and host disagree."""
        for model in self.models.values():
            model.scheduler.check_integrity()
        lanes = [model.lanes for model in self.models.values() if model.lanes is not None]
        num_left = sum(each.num_on_host for each in lanes)
        assert num_left == self._queue.num_waiting, f"{num_left} != {self._queue.num_waiting}"

    def _until(self, time_s: float, *, dozing: bool = False) -> Iterator[None]:
        if time_s > self._clock.now_s:
            self.wake_s, self._is_dozing = time_s, dozing
            yield
            self.wake_s, self._is_dozing = inf, False

    def _serve(self) -> Generator[None, None, None]:
        while True:
            if not self._inbox and not self._has_unfinished:
                yield from self._until(inf, dozing=True)
            self._receive_all()
            if self._has_unfinished:
                yield from self._step()

    @property
    def _has_unfinished(self) -> bool:
        return bool(self._parked) or any(model.has_unfinished for model in self.models.values())

    def _receive_all(self) -> None:
        for message in self._inbox:
            if isinstance(message, str):
                for model in self.models.values():
                    model.abort(message)
                continue
            model = self.models[message.model]
            self._stolen_s += model.profile.front.stolen_s_per_request
            try:
                others = (m.urgent_load() for m in self.models.values() if m is not model)
                model.add(message.request, message.rules, others)
            except (ValueError, OmniServeError) as error:
                self._on_refused(message.model, message.request, error)
        self._inbox.clear()

    def _step(self) -> Iterator[None]:
        self._poll_host()
        is_alone = len(self.models) == 1 and not self._parked
        demands = {name: model.demand(is_alone=is_alone) for name, model in self.models.items()}
        has_work = False
        while True:
            parked = [each.standing for each in self._parked]
            turn = self._turns.next(demands, parked, self._clock.now_s)
            if turn is None:
                break
            has_work = True
            if turn.resumes is not None:
                for name, each in demands.items():
                    if name != turn.model and each.claim and each.claim.awaits_first_token:
                        if (yield from self._collect(self.models[name])):
                            return
                yield from self._resume(turn.resumes)
                return
            model, demand = self.models[turn.model], demands[turn.model]
            begun_step = self._begin(turn, demand.claim)
            if begun_step is not None:
                yield from self._run(begun_step)
                return
            # The token it waits for may be sampled already.
            if (yield from self._collect(model)):
                return
            demands[turn.model] = replace(demand, claim=None, best_effort=False)
        # Otherwise what was left has just been let go of.
        if has_work:
            yield from self._await_host()

    def _begin(self, turn: Turn, claim: Claim | None) -> _Begun | None:
        model = self.models[turn.model]
        step = model.begin(
            host_active=self._host_cores.are_taken,
            latency_sensitive_only=turn.latency_sensitive_only,
            best_effort_tokens=turn.best_effort_tokens,
            best_effort_s=turn.best_effort_s,
        )
        if step is None:
            return None
        self._turns.note_begun(step.plan, turn.model)
        for each in self._parked:
            each.standing.was_passed = True
        return _Begun(model, step, begun(turn.model, step.plan, model.num_layers, claim))

    def _resume(self, standing: StandingStep) -> Iterator[None]:
        (found,) = [each for each in self._parked if each.standing is standing]
        self._parked.remove(found)
        found.model.scheduler.stood_back(standing.plan, self._clock.now_s - standing.parked_s)
        yield from self._run(found)

    def _poll_host(self) -> None:
        self._collect_host()
        for model in self.models.values():
            model.poll()
        models, now_s = self.models.values(), self._clock.now_s
        self._host_cores.update(
            now_s,
            num_offloaded=sum(model.scheduler.num_offloaded for model in models),
            pressure=pressure_on(model.scheduler.pressure.at(now_s) for model in models),
        )
        for model in models:
            model.scheduler.host_rests = self._host_cores.is_resting

    def _collect_host(self) -> None:
        if self._queue.num_waiting:
            models = list(self.models.values())
            for rows in self._queue.collect(self._clock.now_s):
                lanes = models[rows.model].lanes
                assert lanes is not None
                lanes.attended(rows)

    def _await_host(self) -> Iterator[None]:
        """No model can go on before the host or a copy is done."""
        landings = [m.lanes.next_landing_s for m in self.models.values() if m.lanes is not None]
        assert landings, "requests that nothing keeps from running do not run"
        times = [time for time in (*landings, self._queue.next_result_s) if time is not None]
        now_s = self._clock.now_s
        soonest_s = min(times, default=inf)
        yield from self._until(
            min(max(soonest_s, now_s + _EARLY), now_s + _HOST_POLL_S), dozing=True
        )

    def _run(self, running: _Begun) -> Iterator[None]:
        model, step, standing = running.model, running.step, running.standing
        if step.next_layer == 0:
            yield from self._begin_layers(model, step)
        runs_through = standing.is_urgent and len(self.models) == 1
        while step.next_layer < model.num_layers:
            yield from self._run_stretch(running, may_yield=not runs_through)
            if runs_through:
                continue
            standing.next_layer = step.next_layer
            self._receive_all()
            if self._stands_back(standing):
                step.was_interrupted = True
                standing.parked_s = self._clock.now_s
                self._parked.append(running)
                return
        yield from self._finish(model, step)

    def _stands_back(self, standing: StandingStep) -> bool:
        if standing.is_urgent and standing.next_layer == standing.num_layers:
            return False
        for model in self.models.values():
            model.note_landed_copies()
        parked = [each.standing for each in self._parked]
        return stands_back(standing, self._claims(), parked, self._clock.now_s)

    def _claims(self) -> dict[str, Claim]:
        now_s = self._clock.now_s
        return {
            name: claim
            for name, model in self.models.items()
            if (claim := model.scheduler.claim(now_s)) is not None
        }

    def _begin_layers(self, model: SimulatedModel, step: SimulatedStep) -> Iterator[None]:
        overhead_s = model.overhead_s(step, self._host_cores.are_taken) + self._stolen_s
        self._stolen_s = 0.0
        step.ready_s = self._clock.now_s + overhead_s
        if step.lanes is not None:
            # Results that come meanwhile are bound too.
            yield from self._until(step.ready_s)

    def _run_stretch(self, running: _Begun, *, may_yield: bool) -> Iterator[None]:
        """Layers up to where lane rows are bound next, or up to where somebody urgent comes."""
        model, step = running.model, running.step
        if step.next_layer == step.stop_layer:
            if step.lanes is not None:
                self._collect_host()
            model.begin_stretch(step, self._host_cores.are_taken)
        started_s = max(self._clock.now_s, step.ready_s)
        num_layers = step.stop_layer - step.next_layer
        launches = model.profile.pipeline_depth > 1
        layer_s = model.profile.launch_s / model.num_layers if launches else step.layer_s
        if may_yield:
            # The host queues one layer ahead at most.
            layer_s = max(layer_s, step.layer_s)
        stop_s = started_s + num_layers * layer_s
        num_passed = num_layers
        if may_yield:
            stretch = self._stretch = Stretch(started_s, layer_s, num_layers)
            yield from self._until(min(stop_s, self._next_look_s(stretch, running.standing)))
            self._stretch = None
            num_passed = stretch.num_passed(self._clock.now_s)
        else:
            yield from self._until(stop_s)
        now_s = self._clock.now_s
        if launches:
            started_s = max(started_s, self._device_free_s)
            self._device_free_s = max(now_s, started_s + num_passed * step.layer_s)
        else:
            self._device_free_s = now_s
        step.done_s = self._device_free_s
        model.pass_layers(step, num_passed, started_s)

    def _next_look_s(self, stretch: Stretch, standing: StandingStep) -> float:
        """When latency-sensitive work that is here already may become urgent."""
        claims = self._claims()
        if standing.is_urgent:
            # It may take longer than was predicted, so that somebody else would come late.
            claims.pop(standing.model, None)
            is_awaited = bool(self._inbox or claims or self._parked)
            return stretch.boundary_s(stretch.started_s) if is_awaited else inf
        if self._inbox:
            # Came while the step was laid out: whoever runs layers looks behind the first one.
            return stretch.boundary_s(stretch.started_s)
        # Behind the next layer at once, where there is no time even for that.
        now_s = self._clock.now_s
        spare_s = background_s(claims.values(), now_s) - standing.layer_s
        look_s = stretch.boundary_s(max(now_s, now_s + spare_s)) if spare_s < inf else inf
        for name in claims:
            lanes = self.models[name].lanes
            landing_s = None if lanes is None else lanes.next_landing_s
            if landing_s is not None:
                look_s = min(look_s, stretch.boundary_s(landing_s))
        return look_s

    def _finish(self, model: SimulatedModel, step: SimulatedStep) -> Iterator[None]:
        model.finish(step)
        if model.is_pipeline_full:
            yield from self._collect(model)

    def _collect(self, model: SimulatedModel) -> Generator[None, None, bool]:
        """Waits for the oldest step in flight; False if none is."""
        done_s = model.oldest_done_s
        if done_s is None:
            return False
        yield from self._until(done_s)
        sampled, finished = model.collect()
        if sampled:
            front = model.profile.front
            self._stolen_s += front.stolen_s_per_step + front.stolen_s_per_token * len(sampled)
        self._on_tokens(model.name, sampled, finished)
        return True
