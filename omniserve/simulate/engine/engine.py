"""A simulated engine: the rules of `omniserve.engine.core.Engine` on a clock that is set."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from omniserve.errors import OmniServeError
from omniserve.settings import JointLayerStats
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.begun_step import BegunStep
from omniserve.simulate.engine.device import SimulatedDevice
from omniserve.simulate.engine.driver import Arrival, OnRefused, OnTokens
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.host_side import HostSide
from omniserve.simulate.engine.kv_sharing import KvSharing
from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.engine.riding import SimulatedRiding
from omniserve.simulate.engine.waiting import Waiting
from scheduler import Claim, ModelDemand, ModelTurns, ServiceClass, StandingStep, Turn
from scheduler.interleaving import background_s, begun, stands_back
from scheduler.turns import LAYERS_OF_SLACK

_HOST_POLL_S = 0.05
"""Longest sleep where all there is to do is on the host: the governor may change its mind."""
_MEMORY_POLL_S = 1e-3
"""The same where memory may have to move first."""
_EARLY = 1e-9
"""Times that differ by less are the same time."""


class SimulatedEngine:
    """Runs whenever its driver sets the clock to `wake_s` and calls `run`."""

    def __init__(
        self,
        models: dict[str, SimulatedModel],
        clock: Clock,
        queue: HostQueue,
        kv_sharing: KvSharing,
        on_tokens: OnTokens,
        on_refused: OnRefused,
    ) -> None:
        """`on_tokens` and `on_refused` are called at the time at which it happens."""
        self.models = models
        self.kv_sharing = kv_sharing
        self._clock = clock
        self._on_tokens = on_tokens
        self._on_refused = on_refused
        self._inbox: list[Arrival | str] = []
        self._waiting = Waiting(clock)
        self._host = HostSide(models, queue, clock)
        self._device = SimulatedDevice(self._host, clock, self._waiting)
        self._riding = SimulatedRiding(models)
        self._turns = ModelTurns()
        self._parked: list[BegunStep] = []
        self._work = self._serve()

    @property
    def wake_s(self) -> float:
        """When it wants to go on, unless something arrives before."""
        return self._waiting.wake_s

    def submit(self, arrival: Arrival) -> None:
        """A request arrives now; the engine looks at it when it next looks up."""
        self._inbox.append(arrival)
        is_urgent = arrival.request.service_class is ServiceClass.LATENCY_SENSITIVE
        now_s, stretch = self._clock.now_s, self._device.stretch
        if self._waiting.is_dozing:
            self._waiting.wake_by(now_s)
        elif is_urgent and stretch is not None:
            self._waiting.wake_by(stretch.boundary_s(now_s))

    def abort(self, request_id: str) -> None:
        """Forget a request when the engine next looks up."""
        self._inbox.append(request_id)
        if self._waiting.is_dozing:
            self._waiting.wake_by(self._clock.now_s)

    def run(self) -> None:
        """Goes on until it next has to wait, and says until when in `wake_s`."""
        next(self._work)

    def joint_layers(self, model: str) -> JointLayerStats:
        """Layers that were run once for steps of this model and of others."""
        return self._riding.stats(model)

    def check_integrity(self) -> None:
        """Raises an AssertionError where the books of requests, blocks, lanes and host disagree, or
        models have more memory than there is."""
        for model in self.models.values():
            model.scheduler.check_integrity()
        self._host.check_integrity()
        self.kv_sharing.arbiter.check_integrity()

    def _serve(self) -> Generator[None, None, None]:
        while True:
            if not self._inbox and not self._has_unfinished:
                yield from self._waiting.until(inf, dozing=True)
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
            self._device.stolen_s += model.profile.front.stolen_s_per_request
            try:
                others = (m.urgent_load() for m in self.models.values() if m is not model)
                model.add(message.request, message.rules, others)
            except (ValueError, OmniServeError) as error:
                self._on_refused(message.model, message.request, error)
        self._inbox.clear()

    def _step(self) -> Iterator[None]:
        self._host.poll()
        moving_s = self.kv_sharing.balance(self._drop_standing)
        yield from self._waiting.until(self._clock.now_s + moving_s)
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
                guests = [] if turn.latency_sensitive_only else self._guests(begun_step, demands)
                yield from self._device.lay_out([begun_step, *guests])
                yield from self._run(begun_step)
                return
            # The token it waits for may be sampled already.
            if (yield from self._collect(model)):
                return
            demands[turn.model] = replace(demand, claim=None, best_effort=False)
        # Otherwise what was left has just been let go of.
        if has_work:
            yield from self._await_others()

    def _begin(self, turn: Turn, claim: Claim | None) -> BegunStep | None:
        model = self.models[turn.model]
        step = model.begin(
            host_active=self._host.has_cores,
            latency_sensitive_only=turn.latency_sensitive_only,
            best_effort_tokens=turn.best_effort_tokens,
            best_effort_s=turn.best_effort_s,
        )
        if step is None:
            return None
        self._turns.note_begun(step.plan, turn.model)
        for each in self._parked:
            each.standing.was_passed = True
        num_offloaded = model.scheduler.num_offloaded
        standing = begun(turn.model, step.plan, model.num_layers, claim, num_offloaded)
        return BegunStep(model, step, standing)

    def _guests(self, host: BegunStep, demands: Mapping[str, ModelDemand]) -> Sequence[BegunStep]:
        """Steps of models that share layers with this one's, begun to go along; they are parked."""
        if any(each.standing.is_urgent for each in self._parked):
            return []
        shared = self._riding.guests_of(host, demands, self._parked)
        if not shared:
            return []
        guests = self._riding.begin(
            host,
            self._turns.least_served_first(shared),
            self._claims(),
            LAYERS_OF_SLACK,
            self._clock.now_s,
            host_active=self._host.has_cores,
        )
        for guest in guests:
            self._turns.note_riding(guest.standing, shared[guest.model.name])
        self._parked += guests
        return guests

    def _resume(self, standing: StandingStep) -> Iterator[None]:
        (found,) = [each for each in self._parked if each.standing is standing]
        self._parked.remove(found)
        found.model.scheduler.stood_back(standing.plan, self._clock.now_s - standing.parked_s)
        yield from self._run(found)

    def _await_others(self) -> Iterator[None]:
        """No model can go on before the host or a copy is done, or memory has moved."""
        has_budget = self.kv_sharing.num_bytes is not None
        can_wait = has_budget or any(model.lanes is not None for model in self.models.values())
        assert can_wait, "requests that nothing keeps from running do not run"
        now_s = self._clock.now_s
        soonest_s = max(self._host.next_event_s, now_s + _EARLY)
        latest_s = now_s + (_MEMORY_POLL_S if has_budget else _HOST_POLL_S)
        yield from self._waiting.until(min(soonest_s, latest_s), dozing=True)

    def _run(self, running: BegunStep) -> Iterator[None]:
        model, step, standing = running.model, running.step, running.standing
        runs_through = standing.is_urgent and len(self.models) == 1
        while step.next_layer < model.num_layers:
            now_s = self._clock.now_s
            guests = self._riding.beside(running, self._parked, self._claims, now_s)
            if guests:
                self._riding.note_layer([running, *guests])
                yield from self._device.run_joint(running, guests)
                for guest in guests:
                    guest.park(self._clock.now_s)
            else:
                meeting = self._riding.next_meeting(running, self._parked)
                look_s = None if runs_through else self._next_look_s(standing)
                yield from self._device.run_alone(running, meeting, look_s)
            if runs_through:
                continue
            self._receive_all()
            if len(self.models) > 1:
                moving_s = self.kv_sharing.hasten(self._drop_standing)
                yield from self._waiting.until(self._clock.now_s + moving_s)
            if self._stands_back(standing):
                running.park(self._clock.now_s)
                self._parked.append(running)
                return
        model.finish(step)
        if model.is_pipeline_full:
            yield from self._collect(model)

    def _drop_standing(self, model: str) -> bool:
        """As `omniserve.engine.stepping.Stepping` drops steps for the memory that they hold."""
        dropped = [
            each
            for each in self._parked
            if each.model.name == model
            and not each.standing.is_urgent
            and each.step.may_be_dropped
            and each.model.scheduler.memory.is_awaited(each.step.plan)
        ]
        self._parked = [each for each in self._parked if each not in dropped]
        for each in dropped:
            each.model.drop(each.step)
        return bool(dropped)

    def _next_look_s(self, standing: StandingStep) -> float:
        """When latency-sensitive work that is here already may become urgent."""
        claims, now_s = self._claims(), self._clock.now_s
        if standing.is_urgent:
            # It may take longer than was predicted, so that somebody else would come late.
            claims.pop(standing.model, None)
            return now_s if self._inbox or claims or self._parked else inf
        if self.kv_sharing.is_awaited:
            return now_s
        if self._inbox:
            # Came while the step was laid out: whoever runs layers looks behind the first one.
            return now_s
        # Behind the next layer at once, where there is no time even for that.
        spare_s = background_s(claims, now_s, standing.model) - standing.layer_s
        look_s = max(now_s, now_s + spare_s)
        for name in claims:
            lanes = self.models[name].lanes
            if lanes is not None and lanes.next_landing_s is not None:
                look_s = min(look_s, lanes.next_landing_s)
        return look_s

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

    def _collect(self, model: SimulatedModel) -> Generator[None, None, bool]:
        """Waits for the oldest step in flight; False if none is."""
        done_s = model.oldest_done_s
        if done_s is None:
            return False
        yield from self._waiting.until(done_s)
        sampled, finished = model.collect()
        if sampled:
            front = model.profile.front
            stolen_s = front.stolen_s_per_step + front.stolen_s_per_token * len(sampled)
            self._device.stolen_s += stolen_s
        self._on_tokens(model.name, sampled, finished)
        return True
