"""A simulated engine: the rules of `omniserve.engine.core.Engine` on a clock that is set."""

from collections.abc import Generator, Iterator
from math import inf

from omniserve.errors import OmniServeError
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.driver import Arrival, OnRefused, OnTokens
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.engine.step import SimulatedStep
from omniserve.simulate.engine.stretch import Stretch
from scheduler import HostCoresRule, ModelTurns, ServiceClass
from scheduler.urgent_pressure import pressure_on

_HOST_POLL_S = 0.05
"""Longest sleep where all there is to do is on the host: the governor may change its mind."""
_EARLY = 1e-9
"""Times that differ by less are the same time."""


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
        self._turns = ModelTurns(list(models))
        self._host_cores = HostCoresRule()
        self._parked: tuple[SimulatedModel, SimulatedStep] | None = None
        self._stretch: Stretch | None = None
        self._is_dozing = True
        self._num_futile_turns = 0
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
        return self._parked is not None or any(
            model.has_unfinished for model in self.models.values()
        )

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
        if self._parked is not None:
            if not (yield from self._pass_urgent()):
                yield from self._resume()
            return
        is_alone = len(self.models) == 1
        turn = self._turns.next(
            {name: model.demand(is_alone=is_alone) for name, model in self.models.items()}
        )
        if turn is None:
            # What was left has just been let go of.
            return
        model = self.models[turn.model]
        step = model.begin(
            host_active=self._host_cores.are_taken,
            best_effort_tokens=turn.best_effort_tokens,
            best_effort_s=turn.best_effort_s,
        )
        if step is None:
            if not (yield from self._collect(model)):
                yield from self._await_host()
            return
        self._num_futile_turns = 0
        if step.plan.has_latency_sensitive:
            yield from self._run_through(model, step)
        else:
            yield from self._run_yielding(model, step)

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
        """No model that has had its turn can go on before the host or a copy is done."""
        self._num_futile_turns += 1
        if self._num_futile_turns < 2 * len(self.models):
            return
        landings = [m.lanes.next_landing_s for m in self.models.values() if m.lanes is not None]
        assert landings, "requests that nothing keeps from running do not run"
        times = [time for time in (*landings, self._queue.next_result_s) if time is not None]
        now_s = self._clock.now_s
        soonest_s = min(times, default=inf)
        yield from self._until(
            min(max(soonest_s, now_s + _EARLY), now_s + _HOST_POLL_S), dozing=True
        )

    def _run_through(self, model: SimulatedModel, step: SimulatedStep) -> Iterator[None]:
        yield from self._begin_layers(model, step)
        while step.next_layer < model.num_layers:
            yield from self._run_stretch(model, step)
        yield from self._finish(model, step)

    def _run_yielding(self, model: SimulatedModel, step: SimulatedStep) -> Iterator[None]:
        if step.next_layer == 0:
            yield from self._begin_layers(model, step)
        while step.next_layer < model.num_layers:
            yield from self._run_stretch(model, step, may_yield=True)
            self._receive_all()
            for other in self.models.values():
                other.note_landed_copies()
            within_s = step.plan.predicted_s / model.num_layers
            if any(other.has_urgent_work(within_s) for other in self.models.values()):
                self._parked = (model, step)
                step.was_interrupted = True
                return
        yield from self._finish(model, step)

    def _begin_layers(self, model: SimulatedModel, step: SimulatedStep) -> Iterator[None]:
        overhead_s = model.overhead_s(step, self._host_cores.are_taken) + self._stolen_s
        self._stolen_s = 0.0
        step.ready_s = self._clock.now_s + overhead_s
        if step.lanes is not None:
            # Results that come meanwhile are bound too.
            yield from self._until(step.ready_s)

    def _run_stretch(
        self, model: SimulatedModel, step: SimulatedStep, *, may_yield: bool = False
    ) -> Iterator[None]:
        """Layers up to where lane rows are bound next, or up to where somebody urgent comes."""
        if step.next_layer == step.stop_layer:
            if step.lanes is not None:
                self._collect_host()
            model.begin_stretch(step, self._host_cores.are_taken)
        started_s = max(self._clock.now_s, step.ready_s)
        num_layers = step.stop_layer - step.next_layer
        launches = model.profile.pipeline_depth > 1
        layer_s = model.profile.launch_s / model.num_layers if launches else step.layer_s
        stop_s = started_s + num_layers * layer_s
        num_passed = num_layers
        if may_yield:
            stretch = self._stretch = Stretch(started_s, layer_s, num_layers)
            within_s = step.plan.predicted_s / model.num_layers
            yield from self._until(min(stop_s, self._next_look_s(stretch, within_s)))
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

    def _next_look_s(self, stretch: Stretch, within_s: float) -> float:
        """When latency-sensitive work that is here already may become urgent."""
        if self._inbox:
            # Came while the step was laid out: whoever runs layers looks behind the first one.
            return stretch.boundary_s(stretch.started_s)
        look_s = inf
        for model in self.models.values():
            if model.scheduler.has_latency_sensitive_work:
                if model.has_urgent_work(within_s):
                    return stretch.boundary_s(stretch.started_s)
                now_s = self._clock.now_s
                due_s = now_s + model.scheduler.decodes_slack_s(now_s) - within_s
                if due_s < inf:
                    look_s = min(look_s, stretch.boundary_s(due_s))
                landing_s = None if model.lanes is None else model.lanes.next_landing_s
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

    def _pass_urgent(self) -> Generator[None, None, bool]:
        """One step for a request that is urgently awaited; False if none would help it."""
        assert self._parked is not None
        parked, parked_step = self._parked
        within_s = parked_step.plan.predicted_s / parked.num_layers
        for model in self.models.values():
            if model.has_urgent_work(within_s):
                step = model.begin(
                    host_active=self._host_cores.are_taken, latency_sensitive_only=True
                )
                if step is not None:
                    yield from self._run_through(model, step)
                    return True
                # The token it waits for may be sampled already, by a step still in flight.
                if (yield from self._collect(model)):
                    return True
        return False

    def _resume(self) -> Iterator[None]:
        assert self._parked is not None
        (model, step), self._parked = self._parked, None
        yield from self._run_yielding(model, step)
