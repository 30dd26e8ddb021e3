"""Builders for tests of the front: a configuration, and an engine that follows a script."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from omniserve.config import Config
from omniserve.decision import Decision
from omniserve.engine_streams import OutputSink
from omniserve.errors import EngineUnavailable
from omniserve.generation import GenerationRequest, GenerationResult, Prompt
from omniserve.messages import ModelProgress
from omniserve.metrics import Metrics
from omniserve.requests import (
    EngineRequest,
    RequestOutput,
    SamplingParams,
    TierSettings,
    TokenLogprob,
)
from omniserve.service import GenerationService
from omniserve.settings import (
    DeviceSettings,
    EngineSettings,
    KvShareStats,
    ModelInfo,
    ModelSettings,
    ModelStats,
    PiggybackStats,
)
from scheduler.step_time import LinearStepTime

VOCAB_SIZE = 4096
MAX_MODEL_LEN = 256

Script = Callable[[EngineRequest], AsyncGenerator[RequestOutput, None]]
LoadScript = Callable[[ModelSettings, Callable[[ModelProgress], None]], Awaitable[None]]


def make_config(checkpoint: Path, default_tier: str | None = None) -> Config:
    """One model, `demo`; two LS tiers and one BE tier."""
    objectives = {"class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100}
    return Config.model_validate(
        {
            "models": [{"name": "demo", "path": str(checkpoint), "default_tier": default_tier}],
            "tiers": [
                {"name": "interactive", **objectives},
                {"name": "voice", **objectives},
                {"name": "batch", "class": "best_effort"},
            ],
        }
    )


def make_output(
    request: EngineRequest,
    place: int,
    num_tokens: int,
    *,
    text: str | None = None,
    num_cached_tokens: int = 0,
    num_piggybacked_tokens: int = 0,
) -> RequestOutput:
    """Token number `place` of `num_tokens`: its id is the place, its text too."""
    num_top = request.sampling.logprobs
    logprobs = () if num_top is None else (_logprob(place, num_top),)
    return RequestOutput(
        request.request_id,
        text=f"{place} " if text is None else text,
        token_ids=(place,),
        logprobs=logprobs,
        finish_reason="length" if place == num_tokens - 1 else None,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_cached_tokens=num_cached_tokens,
        num_output_tokens=place + 1,
        num_piggybacked_tokens=num_piggybacked_tokens,
    )


async def half_piggybacked(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """As many tokens as asked for, every other one by piggybacking, beginning with the second."""
    num_tokens = request.sampling.max_tokens or 1
    for place in range(num_tokens):
        await asyncio.sleep(0)
        yield make_output(request, place, num_tokens, num_piggybacked_tokens=(place + 1) // 2)


async def held_back(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """As many tokens as asked for; all text comes with the last, as with a long stop string."""
    num_tokens = request.sampling.max_tokens or 1
    for place in range(num_tokens):
        await asyncio.sleep(0)
        text = "".join(f"{each} " for each in range(num_tokens)) if place == num_tokens - 1 else ""
        yield make_output(request, place, num_tokens, text=text)


def make_kv_share(floor_bytes: int = 31) -> KvShareStats:
    """Every number is another one."""
    return KvShareStats(
        floor_bytes=floor_bytes,
        num_moves_in=32,
        num_moves_out=33,
        in_bytes=34,
        out_bytes=35,
        moves_per_s=3.5,
        wait_counts=(1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 4),
        wait_s=5.5,
    )


def make_piggyback_stats() -> PiggybackStats:
    """Every number differs from every other."""
    return PiggybackStats(
        active=True,
        host_state="ready",
        num_offloaded=11,
        num_ready_rows=12,
        num_on_host=13,
        num_rows_joined=28,
        hop_steps_counts=(1, 2, 3, 4, 5, 6, 7),
        hop_steps_sum=300,
        num_tokens=14,
        residual_bytes=15,
        num_swaps_out=16,
        num_swaps_in=17,
        swap_out_bytes=18,
        swap_in_bytes=19,
        host_kv_read_bytes=20,
        host_kv_used_bytes=21,
        host_kv_total_bytes=22,
        num_host_restarts=23,
        num_tasks_redone=24,
        rows_on_host_by_layer=(6, 7),
        rows_ready_by_layer=(10, 2),
        num_host_cores=3,
        has_host_cores=True,
        host_kv_granted_bytes=51,
        host_kv_cached_bytes=52,
    )


def _logprob(token_id: int, num_top: int) -> TokenLogprob:
    top = tuple((token_id + rank, -0.5 - rank) for rank in range(num_top))
    return TokenLogprob(token_id, -0.5, top)


async def counting(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """As many tokens as asked for, one in each turn of the event loop."""
    num_tokens = request.sampling.max_tokens or 1
    for place in range(num_tokens):
        await asyncio.sleep(0)
        yield make_output(request, place, num_tokens)


async def silent(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """Nothing, for ever."""
    await asyncio.Event().wait()
    yield make_output(request, 0, 1)


@dataclass
class ScriptedEngine:
    """What the service needs of an engine, in this process, with outputs made by `script`."""

    script: Script = counting
    ready: bool = True
    state: str = "ready"
    device: str = "scripted"
    num_restarts: int = 0
    stats: dict[str, ModelStats] = field(default_factory=dict)
    max_model_len: int = MAX_MODEL_LEN
    started: list[EngineRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    timelines: dict[str, tuple[Decision, ...]] = field(default_factory=dict)
    settings: EngineSettings = EngineSettings(DeviceSettings(), (ModelSettings("demo", "/demo"),))
    step_times: dict[str, LinearStepTime] = field(default_factory=dict)
    tiers: tuple[TierSettings, ...] = ()
    """As it was last told."""
    shares: dict[str, float] = field(default_factory=dict)
    load_script: "LoadScript | None" = None
    """What a load does before it is done; None: nothing."""
    unloaded: list[str] = field(default_factory=list)
    cancelled_loads: list[str] = field(default_factory=list)
    lost_models: tuple[ModelSettings, ...] = ()
    asleep: set[str] = field(default_factory=set)
    load_s: float = 0.0
    """What it says that loads took."""
    digest: str = ""
    """What it says of every model."""
    forgotten: list[str] = field(default_factory=list)

    @property
    def models(self) -> dict[str, ModelInfo]:
        info = ModelInfo(
            name="demo",
            architecture="Scripted",
            dtype="float32",
            vocab_size=VOCAB_SIZE,
            max_model_len=self.max_model_len,
            kv_bytes_per_token=16,
            num_layers=2,
            device_kv_bytes=1 << 20,
            num_parameters=1,
            eos_token_ids=(0,),
            load_s=self.load_s,
            digest=self.digest,
        )
        return {model.name: replace(info, name=model.name) for model in self.settings.models}

    async def load_model(
        self, settings: ModelSettings, on_progress: Callable[[ModelProgress], None]
    ) -> ModelInfo:
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        try:
            if self.load_script is not None:
                await self.load_script(settings, on_progress)
        except asyncio.CancelledError:
            self.cancelled_loads.append(settings.name)
            raise
        self.settings = replace(self.settings, models=(*self.settings.models, settings))
        return self.models[settings.name]

    async def sleep_model(self, name: str) -> None:
        await asyncio.sleep(0)
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        self.asleep.add(name)

    async def wake_model(
        self, name: str, on_progress: Callable[[ModelProgress], None]
    ) -> ModelInfo:
        """A wake follows `load_script` as a load does."""
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        (settings,) = (each for each in self.settings.models if each.name == name)
        if self.load_script is not None:
            await self.load_script(settings, on_progress)
        self.asleep.remove(name)
        return self.models[name]

    def forget_model(self, name: str) -> None:
        if name in self.asleep:
            self.asleep.remove(name)
            kept = tuple(each for each in self.settings.models if each.name != name)
            self.settings = replace(self.settings, models=kept)
            self.forgotten.append(name)

    def take_lost_models(self) -> tuple[ModelSettings, ...]:
        lost, self.lost_models = self.lost_models, ()
        return lost

    async def unload_model(self, name: str) -> None:
        await asyncio.sleep(0)
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        kept = tuple(each for each in self.settings.models if each.name != name)
        self.settings = replace(self.settings, models=kept)
        self.asleep.discard(name)
        self.unloaded.append(name)

    def on_state_change(self, callback: Callable[[str], None]) -> None:
        """Its state is the one that it was made with."""

    def set_tiers(self, tiers: tuple[TierSettings, ...]) -> None:
        self.tiers = tiers

    def set_shares(self, shares: Mapping[str, float]) -> None:
        self.shares = dict(shares)

    async def explain(self, request_id: str) -> tuple[Decision, ...]:
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        return self.timelines.get(request_id, ())

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        if not self.ready:
            raise EngineUnavailable(f"the engine is {self.state}; try again")
        assert request.model not in self.asleep, "a request for a model that is asleep"
        self.started.append(request)
        self.running.add(request.request_id)
        self.tasks[request.request_id] = asyncio.create_task(self._run(request, sink))

    def abort(self, request_id: str) -> None:
        task = self._forget(request_id)
        if task is not None:
            task.cancel()

    def _forget(self, request_id: str) -> asyncio.Task[None] | None:
        self.running.discard(request_id)
        return self.tasks.pop(request_id, None)

    async def _run(self, request: EngineRequest, sink: OutputSink) -> None:
        """Follows the script up to its first output with a finish reason."""
        try:
            async with aclosing(self.script(request)) as outputs:
                async for output in outputs:
                    is_last = output.finish_reason is not None
                    if is_last:
                        self._forget(request.request_id)
                    sink.put(output)
                    if is_last:
                        return
        except Exception as error:
            self._forget(request.request_id)
            sink.fail(error)


def make_service(
    checkpoint: Path,
    engine: ScriptedEngine | None = None,
    default_tier: str | None = None,
    clock: Callable[[], float] | None = None,
) -> GenerationService:
    config = make_config(checkpoint, default_tier)
    options = {} if clock is None else {"clock": clock}
    return GenerationService(config, engine or ScriptedEngine(), Metrics(), **options)


FIVE_TOKENS = SamplingParams(max_tokens=5)


def make_generation_request(
    *prompts: Prompt,
    sampling: SamplingParams = FIVE_TOKENS,
    n: int = 1,
    tier: str | None = None,
    model: str = "demo",
    request_id: str = "",
) -> GenerationRequest:
    return GenerationRequest(model, prompts or ((1, 2, 3),), sampling, n, tier, request_id)


async def complete(service: GenerationService, request: GenerationRequest) -> GenerationResult:
    async with await service.start(request) as stream:
        return await stream.result()


async def until(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Waits for a condition that another task or process brings about."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.005)
    assert condition()


def sample(metrics: Metrics, name: str, labels: Iterable[str]) -> float:
    """The value of one series, found by its rendered labels, as a scraper would see it."""
    wanted = set(labels)
    for line in metrics.exposition().decode().splitlines():
        series, _, value = line.rpartition(" ")
        found, _, rest = series.partition("{")
        if found == name and wanted == set(rest.rstrip("}").split(",")):
            return float(value)
    raise AssertionError(f"no series {name} with {sorted(wanted)}")
