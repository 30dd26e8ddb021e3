"""The engine: several models, one device, one step at a time."""

import time
from collections.abc import Callable, Iterable, Mapping

import torch

from omniserve.decision import Decision
from omniserve.devices.device import Device, open_device
from omniserve.engine.build import build_runtimes
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.engine.tiers_in_force import TiersInForce
from omniserve.engine.timelines import explain
from omniserve.errors import CheckpointError, UnknownModel
from omniserve.piggyback.host_link import HostLink
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, TierSettings
from omniserve.settings import EngineSettings, ModelInfo, ModelStats
from scheduler import ModelTurns
from scheduler.urgent_pressure import pressure_on

_HOST_POLL_S = 50e-6
_LOST_HOST_POLL_S = 1e-3


class Engine:
    """Serves requests in this process; single-threaded, driven by `step`.

    A step that carries no latency-sensitive row stops at a layer boundary when latency-sensitive
    work arrives for any model, lets it pass, and goes on where it was.
    """

    def __init__(
        self,
        settings: EngineSettings,
        poll_arrivals: Callable[[], None] | None = None,
        device: Device | None = None,
    ) -> None:
        """Loads every model.

        Args:
            settings: device and models.
            poll_arrivals: called at layer boundaries of best-effort steps; may call `add` and
            `abort`.
            device: where it is open already; None opens the one that the settings name.

        Raises:
            CheckpointError: a checkpoint cannot be loaded.
            ConfigError: the device is not there, or a KV limit is too small.
        """
        device = device or open_device(settings.device)
        self.device = device.description
        self._runtimes, self._host = build_runtimes(settings, device)
        self._poll_arrivals = poll_arrivals
        self._turns = ModelTurns(list(self._runtimes))
        self._tiers = TiersInForce()
        self._parked: tuple[ModelRuntime, RunningStep] | None = None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return tuple(runtime.info for runtime in self._runtimes.values())

    @property
    def has_unfinished(self) -> bool:
        # A parked step holds its blocks even where all its requests were aborted meanwhile.
        return self._parked is not None or any(
            runtime.has_unfinished for runtime in self._runtimes.values()
        )

    def runtime(self, model: str) -> ModelRuntime:
        """The runtime of a model.

        Raises:
            UnknownModel: no model of that name is loaded.
        """
        if model not in self._runtimes:
            raise UnknownModel(
                f"model {model!r} is not served; served: {', '.join(self._runtimes)}"
            )
        return self._runtimes[model]

    def add(self, request: EngineRequest) -> None:
        """Queues a request; its outputs come from later calls of `step`.

        Raises:
            UnknownModel: no model of that name is loaded.
            InvalidRequest: the model cannot take this prompt.
            Overloaded, DeadlineExceeded: it is refused, as `ModelRuntime.add` says.
        """
        runtime = self.runtime(request.model)
        others = (
            each.scheduler.ttft_forecast.load
            for each in self._runtimes.values()
            if each is not runtime
        )
        runtime.add(self._tiers.applied_to(request), others)

    def set_tiers(self, tiers: Iterable[TierSettings]) -> None:
        """These tiers are in force from now on.

        Requests that wait or run get the objectives of their tier and are demoted by its rules;
        admission and `max_waiting` concern those that come later. Requests of a tier that is gone,
        or that changed its class, go on with what they had.
        """
        self._tiers = TiersInForce(tiers)
        for runtime in self._runtimes.values():
            runtime.set_terms(self._tiers.terms)

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Weights of tenants in best-effort service from now on; of all others it is 1."""
        for runtime in self._runtimes.values():
            runtime.scheduler.set_shares(shares)

    def explain(self, request_id: str) -> tuple[Decision, ...]:
        """What was decided about a request, in order of time; empty where nothing is known of it.

        Of requests that the front sent, the newest one of those that the client called so.
        """
        schedulers = [runtime.scheduler for runtime in self._runtimes.values()]
        return explain(schedulers, request_id)

    def abort(self, request_id: str) -> None:
        """Forgets a request in any phase; no output follows for it."""
        for runtime in self._runtimes.values():
            if runtime.abort(request_id):
                return

    def warm_up(self) -> None:
        """Generates two tokens with every model and captures its graphs: no request pays for what
        is made on first use.

        Waits for the first start of the host attention process where there is one.

        Raises:
            CheckpointError: a model's logits are not finite.
        """
        if self._host is not None:
            self._host.await_ready()
        for name in self._runtimes:
            sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=2)
            prompt = (0,) * min(4, self._runtimes[name].info.max_model_len - 2)
            if prompt:
                self.add(EngineRequest("warm-up", name, prompt, sampling, "best_effort", "warm-up"))
                while self.has_unfinished:
                    for output in self.step():
                        if output.error is not None:
                            raise CheckpointError(f"model {name!r}: {output.error}")
            self._runtimes[name].warm_up()

    @property
    def host_costs_threads(self) -> bool:
        """Whether host attention, while it has work, takes cores that the device would use."""
        return self._host is not None and self._host.costs_device_threads

    def hold_host_cores(self, is_held: bool) -> None:
        """Computes as if the host had work, until told otherwise."""
        if self._host is not None:
            self._host.hold_cores(is_held)

    def close(self) -> None:
        """Ends the host attention process and gives shared memory back; requests are forgotten."""
        if self._host is not None:
            self._host.close()
        for runtime in self._runtimes.values():
            runtime.close()

    def check_integrity(self) -> None:
        """Raises an AssertionError where the books of some model disagree."""
        for runtime in self._runtimes.values():
            runtime.check_integrity()

    def stats(self) -> tuple[ModelStats, ...]:
        return tuple(runtime.stats() for runtime in self._runtimes.values())

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Runs one step of one model, or as much of one as nothing urgent interrupts.

        Without anything to compute it returns at once or after a short sleep, so call it again.
        """
        if self._host is not None:
            self._host.collect()
            for runtime in self._runtimes.values():
                runtime.poll()
            self._share_cores(self._host)
        if self._parked is not None:
            outputs = self._pass_urgent()
            return self._resume() if outputs is None else outputs
        is_alone = len(self._runtimes) == 1
        demands = {
            name: runtime.demand(is_alone=is_alone) for name, runtime in self._runtimes.items()
        }
        turn = self._turns.next(demands)
        if turn is None:
            return []
        runtime = self._runtimes[turn.model]
        step = runtime.begin(
            best_effort_tokens=turn.best_effort_tokens, best_effort_s=turn.best_effort_s
        )
        if step is None:
            outputs = runtime.collect()
            is_urgent = any(demand.latency_sensitive for demand in demands.values())
            if not outputs and not is_urgent and self._host is not None:
                # All there is to do is on the host, or being copied.
                time.sleep(_HOST_POLL_S if self._host.is_ready else _LOST_HOST_POLL_S)
            return outputs
        if step.plan.has_latency_sensitive:
            return self._run_through(runtime, step)
        return self._run_yielding(runtime, step)

    def _share_cores(self, host: HostLink) -> None:
        runtimes = self._runtimes.values()
        now_s = time.monotonic()
        pressure = pressure_on(each.scheduler.pressure.at(now_s) for each in runtimes)
        host.share_cores(sum(each.scheduler.num_offloaded for each in runtimes), pressure)

    def _run_through(self, runtime: ModelRuntime, step: RunningStep) -> list[RequestOutput]:
        runtime.advance(step, runtime.num_layers)
        return runtime.finish(step)

    def _run_yielding(self, runtime: ModelRuntime, step: RunningStep) -> list[RequestOutput]:
        if self._poll_arrivals is None:
            return self._run_through(runtime, step)
        while step.cursor.next_layer < runtime.num_layers:
            runtime.advance(step, step.cursor.next_layer + 1)
            self._poll_arrivals()
            for other in self._runtimes.values():
                other.note_landed_copies()
            within_s = step.plan.predicted_s / runtime.num_layers
            if any(other.has_urgent_work(within_s) for other in self._runtimes.values()):
                self._parked = (runtime, step)
                step.was_interrupted = True
                return []
        return runtime.finish(step)

    def _pass_urgent(self) -> list[RequestOutput] | None:
        """One step for a request that is urgently awaited, or None if none would help it."""
        assert self._parked is not None
        parked, parked_step = self._parked
        within_s = parked_step.plan.predicted_s / parked.num_layers
        for runtime in self._runtimes.values():
            if runtime.has_urgent_work(within_s):
                step = runtime.begin(latency_sensitive_only=True)
                if step is not None:
                    return self._run_through(runtime, step)
                # The token it waits for may be sampled already, by a step still in flight.
                outputs = runtime.collect()
                if outputs:
                    return outputs
        return None

    def _resume(self) -> list[RequestOutput]:
        assert self._parked is not None
        (runtime, step), self._parked = self._parked, None
        return self._run_yielding(runtime, step)
