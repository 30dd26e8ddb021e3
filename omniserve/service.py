"""Generation as both wire formats see it: names resolved, input checked, sequences started."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from omniserve import __version__
from omniserve.access.access_control import AccessControl
from omniserve.access.caller import ANYONE, Caller
from omniserve.access.refusal_pace import RefusalPace
from omniserve.access.tenant_metrics import TenantCollector
from omniserve.calls.call_log import CallLog
from omniserve.config import Config
from omniserve.config_tier import TierConfig
from omniserve.daemon_metrics import EngineCondition
from omniserve.decision import Decision
from omniserve.engine_streams import OutputSink
from omniserve.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    QuotaExceeded,
)
from omniserve.explanation import explain
from omniserve.front_notes import FrontNotes
from omniserve.generation import GenerationRequest
from omniserve.generation_stream import GenerationStream
from omniserve.metrics import Metrics
from omniserve.model_life.requests_here import ModelRequests
from omniserve.model_life.standing import ModelRoster
from omniserve.model_table import ModelTable
from omniserve.reload.arrivals import ArrivalRecord
from omniserve.request_checks import (
    check_num_sequences,
    check_prompt_length,
    check_words,
    choice_sampling,
    deadline_s_of,
    prompt_name,
    shown_request_id,
)
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest
from omniserve.sampling import check_sampling
from omniserve.served_model import ServedModel
from omniserve.settings import ModelInfo, ModelStats
from omniserve.status.request_board import RequestBoard
from omniserve.tenant_threads import TenantThreads
from omniserve.text_calls import TextCalls
from omniserve.tier_table import TierTable

_HELD_SHARE = 16
"""One in so many places for calls may hold a tenant's refusals."""


class Engine(Protocol):
    """What the service needs of the engine's client."""

    @property
    def ready(self) -> bool: ...
    @property
    def state(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def num_restarts(self) -> int: ...
    @property
    def models(self) -> Mapping[str, ModelInfo]: ...
    @property
    def stats(self) -> Mapping[str, ModelStats]: ...
    def submit(self, request: EngineRequest, sink: OutputSink) -> None: ...
    def abort(self, request_id: str) -> None: ...
    async def explain(self, request_id: str) -> tuple[Decision, ...]: ...


class AwaitsModels(Protocol):
    """Where requests wait whose model is asleep."""

    def num_waiting(self, model: str, tier: str) -> int:
        """Sequences that wait."""

    async def wait_none(self) -> None:
        """Returns once nobody waits."""

    async def awake(
        self, sequences: tuple[EngineRequest, ...], record: RequestRecord
    ) -> tuple[EngineRequest, ...]:
        """Returns once their model is awake, with what is to be sent on."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The server's state at one moment."""

    version: str
    state: str
    device: str
    uptime_s: float
    num_engine_restarts: int
    stats: Mapping[str, ModelStats]


class GenerationService:
    """Accepts, refuses and starts requests. Raises OmniServeError and nothing else it knows of."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Loads the tokenizers; raises CheckpointError."""
        self.config = config
        self.engine = engine
        self.metrics = metrics
        self.tiers = TierTable(config.tiers, config.models)
        """The tiers that new requests get; `set_served` puts others in their place."""
        self.draining = False
        """While true new requests are refused as retryable."""
        self._clock = clock
        self._start_s = clock()
        self.access = AccessControl(config.tenants, clock)
        metrics.register(TenantCollector(self.access.quotas))
        self._refusals = RefusalPace(max(1, config.limits.max_requests // _HELD_SHARE), clock)
        self.arrivals = ArrivalRecord(clock)
        self._notes = FrontNotes()
        self.board = RequestBoard(clock)
        """Requests that are here, and refusals of late."""
        self._request_numbers = itertools.count(1)
        self.text_threads = TenantThreads()
        """For long texts of all models."""
        self.models = ModelTable.load(config.models, self.text_threads)
        """The models that new requests may have; `set_models` puts others in their place."""
        self.roster = ModelRoster(config.models, self._start_s)
        """What becomes of each model."""
        self.model_requests = ModelRequests(clock)
        self.wake_queue: AwaitsModels | None = None
        """None where models do not sleep."""
        metrics.expect(self.models.models, (tier.name for tier in config.tiers))
        metrics.watch_engine(lambda: engine.stats)
        metrics.daemon.watch_supervision(self._engine_condition)
        metrics.models.watch_models(lambda: [each.state for each in self.roster])
        self.texts = TextCalls(self._model_of, self.access.quotas, self._refusals)
        """For callers who want no more than token ids, or the text of some."""
        self.calls = CallLog(metrics, self.board)
        """Where servers follow what they are asked."""

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock

    @property
    def state(self) -> str:
        return "draining" if self.draining else self.engine.state

    @property
    def is_serving(self) -> bool:
        """Whether a request would be accepted now."""
        return self.engine.ready and not self.draining

    def _engine_condition(self) -> EngineCondition:
        return EngineCondition(self.engine.ready, self.is_serving, self.engine.num_restarts)

    def status(self) -> ServerStatus:
        return ServerStatus(
            version=__version__,
            state=self.state,
            device=self.engine.device,
            uptime_s=self._clock() - self._start_s,
            num_engine_restarts=self.engine.num_restarts,
            stats=dict(self.engine.stats),
        )

    def model_info(self, name: str, caller: Caller = ANYONE) -> ModelInfo:
        """What the engine says of the model that this name or alias means.

        Raises InvalidRequest, UnknownModel, PermissionDenied or EngineUnavailable.
        """
        info = self.engine.models.get(self.models.resolve(name, caller).name)
        if info is None or not self.engine.ready:
            raise EngineUnavailable(f"the engine is {self.engine.state}; try again")
        return info

    def model_state(self, name: str) -> str:
        """Of a model that is served."""
        standing = self.roster.get(name)
        return "serving" if standing is None else standing.state

    async def start(self, request: GenerationRequest) -> GenerationStream:
        """Checks and tokenises a request. It runs once the returned stream is entered."""
        request_id = request.request_id or new_request_id()
        shown_id = shown_request_id(request_id)
        record = RequestRecord(
            self.metrics,
            shown_id,
            request.prompts,
            request.arrival_s,
            self._clock,
            self._notes.begin(shown_id),
            self.board,
        )
        try:
            check_words(request_id, request.caller)
            record.tenant = request.caller.tenant
            served, sequences = await self._sequences(request, record)
            # What the caller may not use has no part in what a tier means to it.
            asked_tier = request.tier if request.caller.tiers is None else record.tier
            record.tell_lengths(self.arrivals.note(asked_tier, request.arrival_s, sequences))
            if self.wake_queue is not None:
                sequences = await self.wake_queue.awake(sequences, record)
        except BaseException as error:
            record.end(error)
            if isinstance(error, QuotaExceeded):
                await self._refusals.hold(request.caller.tenant, deadline_s_of(request))
            raise
        max_pending = self.config.limits.unread_tokens
        stream = GenerationStream(
            self.engine, sequences, record, served.tokenizer, self._clock, max_pending
        )
        assert record.lease is not None
        record.lease.on_end(stream.fail)
        return stream

    def set_models(self, models: ModelTable) -> None:
        """From now on requests get these models; raises ReloadRefused, and changes nothing, where
        the default tier of one of them is not among the tiers."""
        self.set_served(self.tiers.tiers, models)

    def set_served(self, tiers: Sequence[TierConfig], models: ModelTable) -> None:
        """From now on requests get these tiers and models: none sees the one without the other.

        Raises ReloadRefused as `set_models` does.
        """
        table = TierTable(tiers, models.configs)
        self.metrics.expect(models.models, (tier.name for tier in tiers))
        self.tiers, self.models = table, models

    async def explain(self, request_id: str) -> tuple[Decision, ...]:
        """What became of a request and why; raises UnknownRequest or EngineUnavailable."""
        return await explain(self._notes, self.engine.explain, request_id)

    def _model_of(self, name: str, caller: Caller) -> tuple[ServedModel, ModelInfo]:
        info = self.model_info(name, caller)
        return self.models.resolve(name, caller), info

    async def _sequences(
        self, request: GenerationRequest, record: RequestRecord
    ) -> tuple[ServedModel, tuple[EngineRequest, ...]]:
        caller = request.caller
        tiers = self.tiers
        served = self.models.resolve(request.model, caller, tiers.default_model(request.tier))
        record.model = served.name
        record.lease = self.model_requests.enter(served.name)
        tier = tiers.settings(tiers.resolve(served.name, request.tier, caller))
        record.tier = record.lease.tier = tier.name
        deadline_s = deadline_s_of(request)
        if self.draining:
            raise EngineUnavailable("the server is shutting down; try again elsewhere or later")
        info = self.model_info(served.name)
        sampling = check_sampling(request.sampling, request.n, info.vocab_size)
        num_sequences = check_num_sequences(request)
        if caller.is_known:
            record.charge_to(self.access.quotas.enter(caller.tenant, num_sequences))
        prompts = await self._tokenised(request, served, info, record)
        record.start(tuple(len(prompt) for prompt in prompts), request.n)
        if deadline_s is not None and self._clock() >= deadline_s:
            raise DeadlineExceeded("the deadline passed before the request could be sent on")
        # Unique, because clients may reuse their ids and the engine may not see one twice.
        unique_id = f"{record.request_id}/{next(self._request_numbers)}"
        sequences = tuple(
            EngineRequest(
                request_id=f"{unique_id}#{place * request.n + choice}",
                model=served.name,
                prompt_token_ids=prompt,
                sampling=choice_sampling(
                    request, sampling, choice, len(prompt), info, self.config.limits
                ),
                service_class=tier.service_class,
                tier=tier.name,
                objectives=tier.objectives,
                rules=tier.rules,
                tenant=caller.tenant,
                arrival_s=request.arrival_s,
                deadline_s=deadline_s,
            )
            for place, prompt in enumerate(prompts)
            for choice in range(request.n)
        )
        record.take_input()
        return served, sequences

    async def _tokenised(
        self,
        request: GenerationRequest,
        served: ServedModel,
        info: ModelInfo,
        record: RequestRecord,
    ) -> list[tuple[int, ...]]:
        prompts = []
        for place, prompt in enumerate(request.prompts):
            if place:
                # Many short texts are as much as one long one.
                await asyncio.sleep(0)
            name = prompt_name(request.prompts, place)
            token_ids = await served.token_ids(
                prompt, info, name, request.caller.tenant, record.on_tokenised
            )
            check_prompt_length(len(token_ids), self.config.limits, name)
            prompts.append(token_ids)
        return prompts


def new_request_id() -> str:
    """Of a request whose client chose none."""
    return f"req-{secrets.token_hex(8)}"
