"""The engine: several models, one device, one step at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from omniserve.decision import Decision
from omniserve.devices.device import Device, open_device
from omniserve.devices.layer_queue import layer_queue_for
from omniserve.devices.thread_pins import ThreadPins
from omniserve.engine.build import build_runtimes, join_kv, make_runtime
from omniserve.engine.kv_sharing import KvSharing
from omniserve.engine.model_changes import ModelChanges, Placement
from omniserve.engine.model_load import ModelLoad, Prepare
from omniserve.engine.model_news import News
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.stepping import Stepping
from omniserve.engine.tiers_in_force import TiersInForce
from omniserve.engine.timelines import explain
from omniserve.engine.trial import warm_up_request
from omniserve.errors import CheckpointError, UnknownModel
from omniserve.models.weight_sharing import WeightSharing
from omniserve.models.weight_store import WeightStore
from omniserve.piggyback.build import HostedModel, add_piggyback, open_piggyback
from omniserve.piggyback.place import require_place
from omniserve.piggyback.runtime import Piggyback
from omniserve.requests import EngineRequest, RequestOutput, TierSettings
from omniserve.settings import EngineSettings, ModelInfo, ModelSettings, ModelStats


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
            poll_arrivals: called at the layer boundaries at which a step may stop; may call `add`
            and `abort`.
            device: where it is open already; None opens the one that the settings name.

        Raises:
            CheckpointError: a checkpoint cannot be loaded.
            ConfigError: the device is not there, or a KV limit is too small.
        """
        device = device or open_device(settings.device)
        self.device = device.description
        self._torch_device = device
        self._asleep = settings.asleep_piggybacks
        store = WeightStore()
        self.kv_sharing = KvSharing(settings, device)
        """Of the KV memory of all models."""
        self._runtimes, self._host = build_runtimes(settings, device, store, self.kv_sharing)
        queue = layer_queue_for(device.torch_device)
        self._stepping = Stepping(self._runtimes, self._host, poll_arrivals, self.kv_sharing, queue)
        placement = Placement(self._require_place, self._join, self._leave)
        self._changes = ModelChanges(device, store, self.kv_sharing, placement)
        self._pins = ThreadPins() if device.torch_device.type == "cpu" else None
        self._tiers = TiersInForce()
        self._sharing = WeightSharing()
        self._shares: Mapping[str, float] = {}

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Those that are served."""
        return tuple(runtime.info for runtime in self._served())

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
            served = ", ".join(self._runtimes) or "none"
            raise UnknownModel(f"model {model!r} is not served; served: {served}")
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
        self._shares = dict(shares)
        for runtime in self._runtimes.values():
            runtime.scheduler.set_shares(shares)

    def begin_load(
        self,
        question: int,
        settings: ModelSettings,
        prepare: Prepare = lambda given: given,
        digest: str = "",
    ) -> None:
        """Begins to load a model beside those that run; goes on with every `step`.

        No step waits for it longer than about a layer takes. `prepare` completes the settings, in
        a thread of its own. Among the `take_news` will be `LoadAdvanced` and then `Loaded`
        or, where nothing of it is left, `Refused`; all with `question`. A model that slept wakes
        so, and is refused where its `digest` is another one now. May be called at layer boundaries.
        """
        self._changes.begin_load(question, settings, prepare, digest)

    def begin_sleep(self, question: int, model: str) -> None:
        """As `begin_unload`, but its part of a KV budget stays its own, until it is loaded again,
        or unloaded."""
        self._changes.begin_sleep(question, model)

    def begin_unload(self, question: int, model: str) -> None:
        """Takes a model out before the next step; goes on with every `step`.

        The requests that it has end with an error that asks to try again; a load of it is given
        up. `Unloaded` is among the news once its memory is given back, or if it was not
        there. May be called at layer boundaries.
        """
        self._changes.begin_unload(question, model)

    @property
    def is_changing(self) -> bool:
        """Whether models are being loaded or unloaded, so that `step` has to be called."""
        return self._changes.are_under_way

    def take_news(self) -> list[News]:
        """What became of loads and unloads since this was asked last."""
        return self._changes.take_news()

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
        for name, runtime in self._runtimes.items():
            request = warm_up_request(runtime.info)
            if request is not None:
                self.add(request)
                while self.has_unfinished:
                    for output in self.step():
                        if output.error is not None:
                            raise CheckpointError(f"model {name!r}: {output.error}")
            runtime.warm_up(is_alone=len(self._runtimes) == 1)

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
        self.kv_sharing.check_integrity()

    def stats(self) -> tuple[ModelStats, ...]:
        """Of the models that are served."""
        served = self._served()
        sharing = self._sharing.of({each.info.name: each.weights for each in served})
        return tuple(
            replace(
                each.stats(),
                weights=sharing[each.info.name],
                layer_waits=self._stepping.waits(each.info.name),
                joint_layers=self._stepping.riding.stats(each.info.name),
                kv_share=self.kv_sharing.device.stats(each.info.name),
                host_kv_share=self.kv_sharing.host.stats(each.info.name),
            )
            for each in served
        )

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Runs one step of one model, or as much of one as nothing urgent interrupts.

        Without anything to compute it returns at once or after a short sleep, so call it again.
        """
        if not self._changes.are_under_way:
            return self._stepping.step()
        if self._pins is not None and not self._lends_cores:
            self._pins.update(is_wanted=self._changes.is_reading)
        ended = self._changes.advance(self._runtimes.__contains__)
        return ended + self._changes.without_trial(self._stepping.step())

    def _served(self) -> list[ModelRuntime]:
        joining = self._changes.joining
        return [runtime for name, runtime in self._runtimes.items() if name != joining]

    @property
    def _lends_cores(self) -> bool:
        """Whether the device's threads change with what the host's cores do."""
        split = None if self._host is None else self._host.core_split
        return split is not None and split.costs_device_threads

    def _require_place(self, model: ModelSettings) -> None:
        require_place(model, self._host, self._torch_device)

    def _join(self, load: ModelLoad) -> ModelRuntime:
        assert load.built is not None
        if self._pins is not None:
            # What a host process takes for its cores must not be what a load left.
            self._pins.update(is_wanted=False)
        hosted = load.built.hosted
        piggyback = None if hosted is None else self._add_piggyback(hosted)
        try:
            runtime = make_runtime(load.built, self._torch_device, piggyback)
            join_kv(self.kv_sharing, load.built, runtime)
        except BaseException:
            if piggyback is not None:
                # Before its pool is closed, with the rest of what was built.
                piggyback.leave()
                piggyback.swapper.close()
            raise
        load.built = None
        runtime.set_terms(self._tiers.terms)
        runtime.scheduler.set_shares(self._shares)
        self._runtimes[runtime.info.name] = runtime
        return runtime

    def _add_piggyback(self, hosted: HostedModel) -> Piggyback:
        if self._host is not None:
            return add_piggyback(hosted, self._host, self._torch_device)
        self._host, piggyback = open_piggyback(hosted, self._torch_device, self._asleep)
        self._stepping.use_host(self._host)
        return piggyback

    def _leave(self, model: str) -> tuple[ModelRuntime | None, list[RequestOutput]]:
        runtime = self._runtimes[model]
        ends = runtime.end_all(f"model {model!r} was unloaded; it may be served again later")
        if self._stepping.is_bound(model):
            return None, ends
        del self._runtimes[model]
        self._stepping.forget(model)
        return runtime, ends
