"""The step loop of an engine: whose step runs next on the device, and which one stands back."""

import time
from collections.abc import Callable, Mapping

from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.piggyback.host_link import HostLink
from omniserve.requests import RequestOutput
from scheduler import ModelTurns
from scheduler.urgent_pressure import pressure_on

_HOST_POLL_S = 50e-6
_LOST_HOST_POLL_S = 1e-3


class Stepping:
    """Steps of all models of a device, one at a time.

    A step that carries no latency-sensitive row stops at a layer boundary when latency-sensitive
    work arrives for any model, lets it pass, and goes on where it was.
    """

    def __init__(
        self,
        runtimes: Mapping[str, ModelRuntime],
        host: HostLink | None,
        poll_arrivals: Callable[[], None] | None,
        balance_memory: Callable[[], None],
    ) -> None:
        """`runtimes` are looked at anew in every step; `poll_arrivals` is called at layer
        boundaries of best-effort steps, `balance_memory` before every step."""
        self._runtimes = runtimes
        self._host = host
        self._poll_arrivals = poll_arrivals
        self._balance_memory = balance_memory
        self._turns = ModelTurns(list(runtimes))
        self._parked: tuple[ModelRuntime, RunningStep] | None = None

    @property
    def is_parked(self) -> bool:
        """Whether a step stands between two of its layers."""
        return self._parked is not None

    def step(self) -> list[RequestOutput]:
        """As `Engine.step`; for callers in inference mode."""
        if self._host is not None:
            self._host.collect()
            for runtime in self._runtimes.values():
                runtime.poll()
            self._share_cores(self._host)
        self._balance_memory()
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
