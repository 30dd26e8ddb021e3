"""The engine: several models, one device, one step at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from omniserve.decision import Decision
from omniserve.devices.device import Device, open_device
from omniserve.engine.build import build_runtimes
from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.stepping import Stepping
from omniserve.engine.tiers_in_force import TiersInForce
from omniserve.engine.timelines import explain
from omniserve.errors import CheckpointError, UnknownModel
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, TierSettings
from omniserve.settings import EngineSettings, ModelInfo, ModelStats


class Engine:
    """Serves requests in this process; single-threaded, driven by `step`."""

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
        self.kv_arbiter = KvArbiter(settings.device.kv_bytes)
        """Of the KV memory of all models."""
        self._runtimes, self._host = build_runtimes(settings, device, self.kv_arbiter)
        self._stepping = Stepping(
            self._runtimes, self._host, poll_arrivals, self.kv_arbiter.balance
        )
        self._tiers = TiersInForce()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return tuple(runtime.info for runtime in self._runtimes.values())

    @property
    def is_parked(self) -> bool:
        """Whether a step stands between two of its layers."""
        return self._stepping.is_parked

    @property
    def has_unfinished(self) -> bool:
        # A parked step holds its blocks even where all its requests were aborted meanwhile.
        return self.is_parked or any(runtime.has_unfinished for runtime in self._runtimes.values())

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
        self.kv_arbiter.check_integrity()

    def stats(self) -> tuple[ModelStats, ...]:
        return tuple(
            replace(runtime.stats(), kv_share=self.kv_arbiter.stats(name))
            for name, runtime in self._runtimes.items()
        )

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Runs one step of one model, or as much of one as nothing urgent interrupts.

        Without anything to compute it returns at once or after a short sleep, so call it again.
        """
        return self._stepping.step()
