"""The step loop of an engine: whose layers run next on the device, and which step stands back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from omniserve.devices.layer_queue import LayerQueue
from omniserve.engine.begun_step import BegunStep
from omniserve.engine.kv_sharing import KvSharing
from omniserve.engine.layer_waits import LayerWaits
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.riding import Riding
from omniserve.piggyback.host_link import HostLink
from omniserve.requests import RequestOutput
from omniserve.settings import LayerWaitStats
from scheduler import Claim, ModelDemand, ModelTurns, StandingStep, Turn
from scheduler.interleaving import begun, stands_back
from scheduler.turns import LAYERS_OF_SLACK
from scheduler.urgent_pressure import pressure_on

_HOST_POLL_S = 50e-6
_LOST_HOST_POLL_S = 1e-3


class Stepping:
    """Steps of all models of a device, a layer at a time.

    A step stops at a layer boundary for latency-sensitive work that is to pass it, and goes on
    where it was; `scheduler.turns` and `scheduler.interleaving` say when. The latency-sensitive
    steps of a model that is alone run through.
    """

    def __init__(
        self,
        runtimes: Mapping[str, ModelRuntime],
        host: HostLink | None,
        poll_arrivals: Callable[[], None] | None,
        kv_sharing: KvSharing,
        queue: LayerQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`runtimes` are looked at anew at every decision; `poll_arrivals` is called at the layer
        boundaries at which a step may stop; `kv_sharing` moves memory before every step, and at
        those boundaries where it is urgent; `queue` is the device's, where it has one."""
        self._runtimes = runtimes
        self._host = host
        self._poll_arrivals = poll_arrivals
        self._kv_sharing = kv_sharing
        self._queue = queue
        self._clock = clock
        self._turns = ModelTurns()
        self._parked: list[BegunStep] = []
        self._waits: dict[str, LayerWaits] = {}
        self.riding = Riding(runtimes)

    @property
    def is_parked(self) -> bool:
        """Whether a step stands between two of its layers."""
        return bool(self._parked)

    def forget(self, model: str) -> None:
        """The model is not served any more: steps of it that stand between two layers are
        dropped. To be called between two steps, once it is not among the runtimes."""
        self._parked = [each for each in self._parked if each.standing.model != model]
        self._waits.pop(model, None)
        self.riding.forget(model)

    def waits(self, model: str) -> LayerWaitStats | None:
        """How long its latency-sensitive requests waited behind other models' layers; None of one
        that never shared the device."""
        waits = self._waits.get(model)
        return None if waits is None else waits.stats()

    def use_host(self, host: HostLink) -> None:
        """The first model that piggybacks has come."""
        self._host = host

    def is_bound(self, model: str) -> bool:
        """Whether rows of a parked step of the model may have gone to the host: it has to come to
        its end before the model is forgotten."""
        parked = (each for each in self._parked if each.standing.model == model)
        return any(each.step.cursor.lanes is not None for each in parked)

    def step(self) -> list[RequestOutput]:
        """As `Engine.step`; for callers in inference mode."""
        if self._host is not None:
            self._attend(self._host)
        self._kv_sharing.balance(self._drop_standing)
        is_alone = len(self._runtimes) == 1 and not self._parked
        demands = {
            name: runtime.demand(is_alone=is_alone) for name, runtime in self._runtimes.items()
        }
        is_urgent = any(demand.claim is not None for demand in demands.values())
        while True:
            parked = [each.standing for each in self._parked]
            turn = self._turns.next(demands, parked, self._clock())
            if turn is None:
                break
            if turn.resumes is not None:
                awaited = self._awaited_in_flight(turn.model, demands)
                return awaited.collect() if awaited else self._resume(turn.resumes)
            begun_step = self._begin(turn, demands[turn.model].claim)
            if begun_step is not None:
                if not turn.latency_sensitive_only:
                    self._begin_guests(begun_step, demands)
                return self._run(begun_step)
            runtime = self._runtimes[turn.model]
            if runtime.has_in_flight:
                # The token it waits for may be sampled already.
                return runtime.collect()
            # It cannot go on before something else has: that gets its turn.
            demands[turn.model] = replace(demands[turn.model], claim=None, best_effort=False)
        if demands and not is_urgent and self._host is not None:
            # All there is to do is on the host, or being copied.
            time.sleep(_HOST_POLL_S if self._host.is_ready else _LOST_HOST_POLL_S)
        return []

    def _drop_standing(self, model: str) -> bool:
        """Latency-sensitive requests of other models wait for memory that best-effort steps of this
        one hold, and these stand between two layers for as long as such requests have work: they
        are not gone on with. Whether there was such a step."""
        dropped = [
            each
            for each in self._parked
            if each.model == model
            and not each.standing.is_urgent
            and each.step.may_be_dropped
            and each.runtime.scheduler.memory.is_awaited(each.step.plan)
        ]
        if dropped and self._queue is not None:
            self._queue.await_all()
        for each in dropped:
            self._parked = [other for other in self._parked if other is not each]
            each.runtime.drop(each.step)
        return bool(dropped)

    def _attend(self, host: HostLink) -> None:
        host.collect()
        runtimes = self._runtimes.values()
        for runtime in runtimes:
            runtime.poll()
        now_s = self._clock()
        pressure = pressure_on(each.scheduler.pressure.at(now_s) for each in runtimes)
        host.share_cores(sum(each.scheduler.num_offloaded for each in runtimes), pressure)

    def _awaited_in_flight(
        self, model: str, demands: Mapping[str, ModelDemand]
    ) -> ModelRuntime | None:
        """Another model whose first token may be sampled already: nobody would look for it amid the
        layers of a step that goes on."""
        for name, demand in demands.items():
            claim, runtime = demand.claim, self._runtimes[name]
            if name != model and claim is not None and claim.awaits_first_token:
                if runtime.has_in_flight:
                    return runtime
        return None

    def _begin(self, turn: Turn, claim: Claim | None) -> BegunStep | None:
        runtime = self._runtimes[turn.model]
        step = runtime.begin(
            latency_sensitive_only=turn.latency_sensitive_only,
            best_effort_tokens=turn.best_effort_tokens,
            best_effort_s=turn.best_effort_s,
        )
        if step is None:
            return None
        self._turns.note_begun(step.plan, turn.model)
        for each in self._parked:
            each.standing.was_passed = True
        if len(self._runtimes) > 1 and step.plan.has_latency_sensitive:
            self._waits_of(turn.model).end()
        standing = begun(
            turn.model, step.plan, runtime.num_layers, claim, runtime.scheduler.num_offloaded
        )
        return BegunStep(runtime, step, standing)

    def _begin_guests(self, host: BegunStep, demands: Mapping[str, ModelDemand]) -> None:
        """Steps of models that share layers with this one's go along where there is room."""
        if any(each.standing.is_urgent for each in self._parked):
            return
        shared = self.riding.guests_of(host, demands, self._parked)
        if shared:
            now_s = self._clock()
            names = self._turns.least_served_first(shared)
            claims = self._claims(now_s)
            for guest in self.riding.begin(host, names, claims, LAYERS_OF_SLACK, now_s):
                self._turns.note_riding(guest.standing, shared[guest.model])
                self._parked.append(guest)

    def _resume(self, standing: StandingStep) -> list[RequestOutput]:
        (found,) = [each for each in self._parked if each.standing is standing]
        self._parked.remove(found)
        found.runtime.scheduler.stood_back(standing.plan, self._clock() - standing.parked_s)
        return self._run(found)

    def _run(self, running: BegunStep) -> list[RequestOutput]:
        runtime, step = running.runtime, running.step
        is_alone = len(self._runtimes) == 1
        if is_alone and (running.standing.is_urgent or self._poll_arrivals is None):
            runtime.advance(step, runtime.num_layers)
            return runtime.finish(step)
        claims: Mapping[str, Claim] | None = None
        while step.cursor.next_layer < runtime.num_layers:
            first, started_s = step.cursor.next_layer, self._clock()
            self._advance(running, claims, started_s)
            if self._queue is not None:
                self._queue.note()
                self._queue.await_room()
            if self._poll_arrivals is not None:
                self._poll_arrivals()
            if not is_alone:
                self._kv_sharing.hasten(self._drop_standing)
            for each in self._runtimes.values():
                each.note_landed_copies()
            now_s = self._clock()
            claims = self._claims(now_s)
            if not is_alone:
                self._note_waits(running, claims, step.cursor.next_layer - first, started_s, now_s)
            if self._stands_back(running.standing, claims, now_s):
                self._park(running, now_s)
                return []
        return runtime.finish(step)

    def _advance(
        self, running: BegunStep, claims: Mapping[str, Claim] | None, now_s: float
    ) -> None:
        """Up to where the step may stop next; `claims` as they are now, if they are known."""
        guests = self.riding.beside(
            running, self._parked, lambda: self._claims(now_s) if claims is None else claims, now_s
        )
        if guests:
            self.riding.advance(running, guests)
            for guest in guests:
                guest.follow(self._clock())
        else:
            running.runtime.advance(running.step, running.runtime.next_stop(running.step))
        running.standing.next_layer = running.step.cursor.next_layer

    def _claims(self, now_s: float) -> dict[str, Claim]:
        return {
            name: claim
            for name, runtime in self._runtimes.items()
            if (claim := runtime.scheduler.claim(now_s)) is not None
        }

    def _stands_back(
        self, standing: StandingStep, claims: Mapping[str, Claim], now_s: float
    ) -> bool:
        if standing.is_urgent and standing.next_layer == standing.num_layers:
            return False
        return stands_back(standing, claims, [each.standing for each in self._parked], now_s)

    def _note_waits(
        self,
        running: BegunStep,
        claims: Mapping[str, Claim],
        num_layers: int,
        started_s: float,
        now_s: float,
    ) -> None:
        """Whoever is in a hurry has waited for these layers, or come amid them."""
        for name in self._runtimes:
            if name != running.standing.model:
                claim = claims.get(name)
                if claim is not None and claim.is_hurried(now_s):
                    self._waits_of(name).stood_behind(num_layers, now_s - started_s)
                elif name in self._waits:
                    self._waits[name].forget()

    def _park(self, running: BegunStep, now_s: float) -> None:
        running.step.was_interrupted = True
        running.standing.parked_s = now_s
        self._parked.append(running)
        if len(self._runtimes) > 1:
            self._waits_of(running.standing.model).num_parked += 1

    def _waits_of(self, model: str) -> LayerWaits:
        return self._waits.setdefault(model, LayerWaits())
