"""Generation as both wire formats see it: names resolved, input checked, sequences started."""

import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from omniserve import __version__
from omniserve.config import Config
from omniserve.config_tier import TierConfig
from omniserve.decision import Decision
from omniserve.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    UnknownModel,
)
from omniserve.explanation import explain
from omniserve.front_notes import FrontNotes
from omniserve.generation import ChatPrompt, GenerationRequest, Prompt
from omniserve.generation_stream import GenerationStream
from omniserve.metrics import Metrics
from omniserve.reload.arrivals import ArrivalRecord
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams
from omniserve.sampling import check_sampling
from omniserve.served_model import ServedModel
from omniserve.settings import ModelInfo, ModelStats
from omniserve.tier_table import TierTable

MAX_PROMPTS = 128
MAX_SEQUENCES = 128
"""Prompts times choices of one request."""
MAX_REQUEST_ID_CHARS = 128
MAX_TENANT_CHARS = 64
MAX_DEADLINE_MS = 86_400_000


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
    def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]: ...
    async def explain(self, request_id: str) -> tuple[Decision, ...]: ...


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
        """The tiers that new requests get; `set_tiers` puts others in their place."""
        self.draining = False
        """While true new requests are refused as retryable."""
        self._clock = clock
        self._start_s = clock()
        self.arrivals = ArrivalRecord(clock)
        self._notes = FrontNotes()
        self._request_numbers = itertools.count(1)
        self._models = {model.name: ServedModel.load(model) for model in config.models}
        metrics.expect(self._models, (tier.name for tier in config.tiers))
        metrics.watch_engine(lambda: engine.stats)

    @property
    def state(self) -> str:
        return "draining" if self.draining else self.engine.state

    @property
    def is_serving(self) -> bool:
        """Whether a request would be accepted now."""
        return self.engine.ready and not self.draining

    def status(self) -> ServerStatus:
        return ServerStatus(
            version=__version__,
            state=self.state,
            device=self.engine.device,
            uptime_s=self._clock() - self._start_s,
            num_engine_restarts=self.engine.num_restarts,
            stats=dict(self.engine.stats),
        )

    def model_info(self, name: str) -> ModelInfo:
        """What the engine says of a served model; raises UnknownModel or EngineUnavailable."""
        self._model(name)
        info = self.engine.models.get(name)
        if info is None or not self.engine.ready:
            raise EngineUnavailable(f"the engine is {self.engine.state}; try again")
        return info

    async def start(self, request: GenerationRequest) -> GenerationStream:
        """Checks and tokenises a request. It runs once the returned stream is entered."""
        request_id = request.request_id or new_request_id()
        shown_id = request_id[:MAX_REQUEST_ID_CHARS]
        record = RequestRecord(
            self.metrics,
            shown_id,
            request.prompts,
            request.arrival_s,
            self._clock,
            self._notes.begin(shown_id),
        )
        try:
            _check_words(request_id, request.tenant)
            sequences = await self._sequences(request, record)
        except BaseException as error:
            record.end(error)
            raise
        record.tell_lengths(self.arrivals.note(request.tier, request.arrival_s, sequences))
        tokenizer = self._models[request.model].tokenizer
        return GenerationStream(self.engine, sequences, record, tokenizer, self._clock)

    def set_tiers(self, tiers: tuple[TierConfig, ...]) -> None:
        """From now on requests get these tiers; raises ReloadRefused, and changes nothing, where a
        model's default is not among them."""
        table = self.tiers.with_tiers(tiers)
        self.metrics.expect(self._models, (tier.name for tier in tiers))
        self.tiers = table

    async def explain(self, request_id: str) -> tuple[Decision, ...]:
        """What became of a request and why; raises UnknownRequest or EngineUnavailable."""
        return await explain(self._notes, self.engine.explain, request_id)

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """The token ids that generation would start from."""
        name = _prompt_name((prompt,), 0)
        return await self._model(model).token_ids(prompt, self.model_info(model), name)

    def detokenize(
        self, model: str, token_ids: tuple[int, ...], *, keep_special_tokens: bool
    ) -> str:
        info = self.model_info(model)
        served = self._model(model)
        return served.detokenize(token_ids, info, keep_special_tokens=keep_special_tokens)

    def _model(self, name: str) -> ServedModel:
        served = self._models.get(name)
        if served is None:
            names = ", ".join(self._models)
            if not name:
                raise InvalidRequest(f"model: must be given; served: {names}", "model")
            raise UnknownModel(f"model {name[:128]!r} is not served; served: {names}")
        return served

    async def _sequences(
        self, request: GenerationRequest, record: RequestRecord
    ) -> tuple[EngineRequest, ...]:
        served = self._model(request.model)
        record.model = request.model
        tiers = self.tiers
        tier = tiers.settings(tiers.resolve(request.model, request.tier))
        record.tier = tier.name
        deadline_s = _deadline_s(request)
        if self.draining:
            raise EngineUnavailable("the server is shutting down; try again elsewhere or later")
        info = self.model_info(request.model)
        sampling = check_sampling(request.sampling, request.n, info.vocab_size)
        _check_num_sequences(request)
        prompts = [
            await served.token_ids(prompt, info, _prompt_name(request.prompts, place))
            for place, prompt in enumerate(request.prompts)
        ]
        record.start(tuple(len(prompt) for prompt in prompts), request.n)
        if deadline_s is not None and self._clock() >= deadline_s:
            raise DeadlineExceeded("the deadline passed before the request could be sent on")
        # Unique, because clients may reuse their ids and the engine may not see one twice.
        unique_id = f"{record.request_id}/{next(self._request_numbers)}"
        return tuple(
            EngineRequest(
                request_id=f"{unique_id}#{place * request.n + choice}",
                model=request.model,
                prompt_token_ids=prompt,
                sampling=_choice_sampling(request, sampling, choice, len(prompt), info),
                service_class=tier.service_class,
                tier=tier.name,
                objectives=tier.objectives,
                rules=tier.rules,
                tenant=request.tenant,
                arrival_s=request.arrival_s,
                deadline_s=deadline_s,
            )
            for place, prompt in enumerate(prompts)
            for choice in range(request.n)
        )


def _choice_sampling(
    request: GenerationRequest,
    sampling: SamplingParams,
    choice: int,
    num_prompt_tokens: int,
    info: ModelInfo,
) -> SamplingParams:
    """The sampling of one choice: its own seed, and a limit that the context can hold."""
    room = info.max_model_len - num_prompt_tokens
    max_tokens = sampling.max_tokens
    if max_tokens is None:
        max_tokens = min(request.default_max_tokens or room, room)
    if max_tokens > room:
        raise InvalidRequest(
            f"max_tokens: {max_tokens} tokens of output after {num_prompt_tokens} tokens of prompt "
            f"are more than the model's context of {info.max_model_len}; allowed: up to {room}",
            "max_tokens",
        )
    seed = None if sampling.seed is None else sampling.seed + choice
    return replace(sampling, seed=seed, max_tokens=max_tokens)


def _check_num_sequences(request: GenerationRequest) -> None:
    num_prompts = len(request.prompts)
    if not 1 <= num_prompts <= MAX_PROMPTS:
        message = f"prompt: {num_prompts} prompts are not allowed; allowed: 1 to {MAX_PROMPTS}"
        raise InvalidRequest(message, "prompt")
    if num_prompts * request.n > MAX_SEQUENCES:
        raise InvalidRequest(
            f"n: {request.n} choices of {num_prompts} prompts are not allowed; "
            f"allowed: {MAX_SEQUENCES} sequences in all",
            "n",
        )


def new_request_id() -> str:
    """Of a request whose client chose none."""
    return f"req-{secrets.token_hex(8)}"


def _check_words(request_id: str, tenant: str) -> None:
    """The words of a client that are passed on as they are."""
    for name, value, most_chars in (
        ("request_id", request_id, MAX_REQUEST_ID_CHARS),
        ("tenant", tenant, MAX_TENANT_CHARS),
    ):
        if len(value) > most_chars or not value.isprintable():
            allowed = f"up to {most_chars} printable characters"
            raise InvalidRequest(f"{name}: not allowed; allowed: {allowed}", name)


def _deadline_s(request: GenerationRequest) -> float | None:
    """On the clock of the arrival."""
    deadline_ms, deadline_s = request.deadline_ms, request.call_deadline_s
    if deadline_ms is None:
        return deadline_s
    if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRequest(
            f"deadline_ms: {deadline_ms} is not allowed; allowed: 1 to {MAX_DEADLINE_MS}",
            "deadline_ms",
        )
    own_s = request.arrival_s + deadline_ms / 1e3
    return own_s if deadline_s is None else min(own_s, deadline_s)


def _prompt_name(prompts: tuple[Prompt, ...], place: int) -> str:
    """How messages call one prompt of a request."""
    if isinstance(prompts[place], ChatPrompt):
        return "messages"
    return "prompt" if len(prompts) == 1 else f"prompt[{place}]"
