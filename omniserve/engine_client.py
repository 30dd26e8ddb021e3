"""The front's side of the engine: keeps one engine process alive and carries requests to it."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from omniserve.decision import Decision
from omniserve.engine_keeper import EngineKeeper
from omniserve.engine_models import Answer, EngineModels, OnProgress
from omniserve.engine_process_handle import EngineProcessHandle
from omniserve.engine_questions import EngineQuestions
from omniserve.engine_streams import OutputSink, RequestStreams
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import EngineUnavailable
from omniserve.logs import get_logger, log_event
from omniserve.messages import (
    Abort,
    Configure,
    EngineReady,
    Explained,
    Outputs,
    SetShares,
    SetTiers,
    Stats,
    Submit,
    ToEngine,
    ToFront,
)
from omniserve.requests import EngineRequest, TierSettings
from omniserve.settings import EngineSettings, ModelInfo, ModelSettings, ModelStats
from omniserve.tasks import TaskGuard
from scheduler.step_time import LinearStepTime

EngineState = Literal["starting", "ready", "restarting", "failed", "stopping"]

_logger = get_logger(__name__)


class EngineClient:
    """Generates through a supervised engine process. Made inside a running event loop."""

    def __init__(
        self,
        settings: EngineSettings,
        supervision: EngineSupervision | None = None,
        tiers: tuple[TierSettings, ...] = (),
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`tiers` and `shares` of tenants are those in force; the engine goes by them, until
        `set_tiers` and `set_shares` name others."""
        self.state: EngineState = "starting"
        self.stats: dict[str, ModelStats] = {}
        self.num_reports = 0
        """Counter: snapshots that engines sent."""
        self.device = ""
        self._models = EngineModels(settings)
        self._supervision = supervision or EngineSupervision()
        self._tiers = tiers
        self._shares = dict(shares)
        self._listeners: list[Callable[[EngineState], None]] = []
        self._streams = RequestStreams()
        self._questions = EngineQuestions()
        self._guard = TaskGuard()
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready_since_s = 0.0
        self._keeper = EngineKeeper(self._supervision, self)

    @property
    def settings(self) -> EngineSettings:
        """What the engine has, or had when it died."""
        return self._models.settings

    @property
    def models(self) -> dict[str, ModelInfo]:
        """Those that are loaded, and those that are asleep."""
        return self._models.infos

    @property
    def step_times(self) -> dict[str, LinearStepTime]:
        """By model: what steps are expected to take, where that is known."""
        return self._models.step_times

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def num_restarts(self) -> int:
        return self._keeper.num_restarts

    @property
    def num_in_flight(self) -> int:
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, where there is one."""
        return self._process.pid if self._process else None

    @property
    def _process(self) -> EngineProcessHandle | None:
        return self._keeper.process

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        self._listeners.append(callback)

    async def start(self) -> None:
        """Spawns the engine and returns once it is ready.

        Raises CheckpointError with the engine's own words where it cannot serve these settings, and
        EngineError where it ends without a word. `stop` must be called in either case.
        """
        self._keeper.open()
        self._guard.spawn(self._supervise(), "engine-supervisor")
        failure = asyncio.ensure_future(self._guard.failure())
        try:
            await asyncio.wait((self._first_ready, failure), return_when="FIRST_COMPLETED")
            if not self._first_ready.done():
                raise failure.result()
            await self._first_ready
        finally:
            failure.cancel()

    async def stop(self, grace_s: float) -> None:
        """Ends open streams and the engine: kindly where it is ready, by force after `grace_s`."""
        was_ready = self.ready
        self._set_state("stopping")
        self._fail_all("the daemon is stopping")
        await self._guard.cancel()
        await self._keeper.close(grace_s if was_ready else None)

    def kill(self) -> None:
        """Ends the engine at once, without waiting; for a front that is about to exit."""
        self._keeper.kill()

    async def failure(self) -> BaseException:
        """Waits for a fault of the supervision itself; engines that die are not one."""
        return await self._guard.failure()

    def set_tiers(self, tiers: tuple[TierSettings, ...]) -> None:
        """These are in force from now on, also for requests that wait or run, and in every engine
        that is started later."""
        self._tiers = tiers
        if self._process is not None:
            self._process.send(SetTiers(tiers))

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Weights of tenants in best-effort service, in force as `set_tiers` says of tiers."""
        self._shares = dict(shares)
        if self._process is not None:
            self._process.send(SetShares(self._shares))

    async def wait_idle(self) -> None:
        """Returns once no request is in flight."""
        await self._streams.wait_idle()

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """The sink is told the outputs, up to one with a finish reason or a failure.

        Raises EngineUnavailable where no engine is ready; the sink is told it when the engine dies
        meanwhile.
        """
        process = self._ready_process()
        self._streams.open(request.request_id, sink)
        process.send(Submit(request))

    def abort(self, request_id: str) -> None:
        """The engine forgets the request, and its sink hears no more; of one that has ended nothing
        happens."""
        if self._streams.close(request_id) and self._process is not None:
            self._process.send(Abort((request_id,)))

    async def explain(self, request_id: str) -> tuple[Decision, ...]:
        """What the engine decided about the newest request that a client calls so, in order of
        time; empty where it knows of none. Raises EngineUnavailable as `submit` does."""
        return await self._questions.ask(self._ready_process().send, request_id)

    async def load_model(self, settings: ModelSettings, on_progress: OnProgress) -> ModelInfo:
        """Has the engine serve one model more, beside those that go on; one that is started later
        has to be asked again (`take_lost_models`). `on_progress` is told how far it is, and must
        not raise.

        Where the caller is cancelled, the load is given up.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            ConfigError: the name is in use, a setting is wrong, the memory does not suffice, or
                somebody unloaded it meanwhile.
            EngineUnavailable: no engine is ready, or it died meanwhile.
        """
        self._ready_process()
        return await self._models.load(self._tell, settings, on_progress)

    async def unload_model(self, name: str) -> None:
        """Has the engine forget a model, and returns once its memory is given back. Requests that
        it still has end with EngineUnavailable; a load of it is given up.

        Raises:
            UnknownModel: there is none of this name.
            EngineUnavailable: no engine is ready. One that dies meanwhile has no model either.
        """
        self._ready_process()
        await self._models.unload(self._tell, name)

    async def sleep_model(self, name: str) -> None:
        """Has the engine give a model's memory back, and returns once it has. The model, which must
        have nothing to do, stays among `models`, also where the engine dies; `wake_model` brings it
        back, `unload_model` forgets it. Of one that is asleep nothing happens.

        Raises:
            UnknownModel: there is none of this name.
            EngineUnavailable: no engine is ready, and nothing has changed.
        """
        self._ready_process()
        await self._models.sleep(self._tell, name)
        self.stats.pop(name, None)

    async def wake_model(self, name: str, on_progress: OnProgress) -> ModelInfo:
        """Has the engine load a model again that is asleep, as `load_model` does; of one that is
        awake nothing happens. Where the caller is cancelled, the model is gone.

        Raises:
            UnknownModel: there is none of this name.
            CheckpointError: it cannot be loaded, or its files have changed; it is gone.
            ConfigError: the memory does not suffice, and it is still asleep; or somebody unloaded
                it.
            EngineUnavailable: no engine is ready, or it died meanwhile; it is still asleep.
        """
        self._ready_process()
        return await self._models.wake(self._tell, name, on_progress)

    def forget_model(self, name: str) -> None:
        """A model that is asleep is gone, also for engines that are started later; of one that is
        not there nothing happens."""
        self._models.forget(self._tell, name)

    def take_lost_models(self) -> tuple[ModelSettings, ...]:
        """Models that were loaded at run time, and that an engine which was started anew has not.
        Each is told once: whoever hears of it loads it again, as it was, or lets it go."""
        return self._models.take_lost()

    def _tell(self, message: ToEngine) -> None:
        if self._process is not None:
            self._process.send(message)

    def _ready_process(self) -> EngineProcessHandle:
        if not self.ready or self._process is None:
            raise EngineUnavailable(f"the engine is {self.state}; try again later")
        return self._process

    @property
    def was_ever_ready(self) -> bool:
        return self._first_ready.done()

    @property
    def healthy_s(self) -> float:
        return self._now_s() - self._ready_since_s if self.ready else 0.0

    def greet(self, process: EngineProcessHandle) -> None:
        """Tells a new process what it serves, and by what it goes."""
        process.send(Configure(self._models.at_start, self._supervision.load_s))
        process.send(SetTiers(self._tiers))
        process.send(SetShares(self._shares))

    async def take(self, messages: list[ToFront]) -> None:
        """What the process said at one time."""
        for message in messages:
            if isinstance(message, Outputs) and len(messages) == 1:
                await self._streams.deliver_in_turns(message.outputs)
            else:
                self._handle(message)

    def lost(self) -> None:
        """The process has ended, or will be; nobody is left waiting for it."""
        self.stats = {}
        self._set_state("restarting")
        self._fail_all("the engine was lost; it is being restarted, try again later")

    async def _supervise(self) -> None:
        reason = await self._keeper.run()
        self._set_state("failed")
        self._first_ready.set_exception(reason)

    def _handle(self, message: ToFront) -> None:
        if isinstance(message, Outputs):
            # One of several: the front is behind, and what is for one client goes out together.
            self._streams.deliver(message.outputs)
        elif isinstance(message, Explained):
            self._questions.answer(message)
        elif isinstance(message, Stats):
            # What was on its way while a model was unloaded says nothing of it any more.
            known = (stats for stats in message.models if stats.name in self.models)
            self.stats = {stats.name: stats for stats in known}
            self.num_reports += 1
        elif isinstance(message, Answer):
            self._models.answer(message)
        elif isinstance(message, EngineReady):
            self._models.ready(message)
            self.device = message.device
            self._ready_since_s = self._now_s()
            log_event(_logger, "engine_ready", device=self.device, models=",".join(self.models))
            self._set_state("ready")
            if not self._first_ready.done():
                self._first_ready.set_result(None)

    def _fail_all(self, message: str) -> None:
        """Nobody is left waiting for the engine."""
        self._streams.fail_all(message)
        self._questions.fail_all(message)
        self._models.fail_all(message)

    def _set_state(self, state: EngineState) -> None:
        if state != self.state:
            self.state = state
            for listener in self._listeners:
                listener(state)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
