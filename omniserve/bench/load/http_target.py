"""Any server with OpenAI's /v1/completions: OmniServe, vLLM, and others that take token ids."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from omniserve.bench.load.event_stream import EventStream
from omniserve.bench.load.grpc_target import GrpcTarget
from omniserve.bench.load.http_client import HttpAddress, HttpClient
from omniserve.bench.load.http_connection import OK, HttpAnswer
from omniserve.bench.load.metrics_text import read_clock
from omniserve.bench.load.target import (
    Clock,
    ModelInfo,
    OnTokens,
    RequestFailed,
    RequestRejected,
    StatusReading,
    TargetInfo,
    TokenRequest,
)

DEFAULT_VOCAB_SIZE = 1000
"""Token ids that any model has; HTTP does not tell how many there are."""
MAX_ERROR_CHARS = 200
_REFUSALS = (429, 503)
_to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What a server understands beyond OpenAI's API."""

    name: str
    has_tiers: bool = False
    counts_tokens: bool = False
    """Whether every event can say how many tokens there are by then."""


_DIALECTS = {
    "omniserve": _Dialect("OmniServe", has_tiers=True, counts_tokens=True),
    "omniserve-null": _Dialect("null server", counts_tokens=True),
    "vllm": _Dialect("vLLM", counts_tokens=True),
}


class HttpTarget:
    """Made inside a running event loop."""

    def __init__(
        self,
        url: str,
        vocab_size: int | None = None,
        grpc: str | None = None,
        token: str | None = None,
    ) -> None:
        """`grpc` is where an OmniServe server tells its status and what it serves, its vocabulary
        too; without that prompts have ids below `vocab_size`, or below DEFAULT_VOCAB_SIZE.

        Raises ConfigError for an address that is none.
        """
        self._client = HttpClient(HttpAddress.parse(url), token)
        self._vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
        self._status = GrpcTarget(grpc, token=token) if grpc is not None else None
        self._dialect = _Dialect("server")

    async def describe(self) -> TargetInfo:
        """Finds out too how to talk to the server; requests are encoded after that."""
        answer = await self._client.get("/v1/models")
        if answer.status != OK:
            raise RequestFailed(f"cannot ask the server what it serves: {_http_error(answer)}")
        try:
            listed = msgspec.json.decode(answer.body)["data"]
            models = tuple(
                ModelInfo(model["id"], self._vocab_size, model.get("max_model_len"))
                for model in listed
            )
            owner = listed[0].get("owned_by", "") if listed else ""
        except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
            raise RequestFailed("GET /v1/models: the answer is no list of models") from None
        self._dialect = _DIALECTS.get(owner, _Dialect(owner or "server"))
        if self._status is not None:
            return await self._status.describe()
        return TargetInfo(self._dialect.name, await self._version(), "", models)

    def encode(self, request: TokenRequest) -> bytes:
        usage = {"include_usage": True}
        if self._dialect.counts_tokens:
            usage["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": request.model,
            "prompt": request.token_ids,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": usage,
        }
        if request.tier and self._dialect.has_tiers:
            body["service_tier"] = request.tier
        return self._client.request(
            "POST", "/v1/completions", _to_json(body | dict(request.extra_body))
        )

    async def send(self, payload: bytes, on_tokens: OnTokens) -> int:
        events = EventStream(on_tokens)
        answer = await self._client.exchange(payload, events.feed)
        if answer.status in _REFUSALS:
            raise RequestRejected(_http_error(answer))
        if answer.status != OK:
            raise RequestFailed(_http_error(answer))
        return events.total()

    async def clock(self) -> Clock:
        answer = await self._client.get("/metrics")
        return read_clock(answer.body.decode("utf-8", "replace")) if answer.status == OK else {}

    async def watch_status(self, interval_ms: int) -> AsyncIterator[StatusReading]:
        if self._status is not None:
            async for reading in self._status.watch_status(interval_ms):
                yield reading

    async def close(self) -> None:
        self._client.close()
        if self._status is not None:
            await self._status.close()

    async def _version(self) -> str:
        answer = await self._client.get("/version")
        if answer.status != OK:
            return ""
        try:
            return str(msgspec.json.decode(answer.body)["version"])
        except (msgspec.DecodeError, LookupError, TypeError):
            return ""


def _http_error(answer: HttpAnswer) -> str:
    try:
        text = str(msgspec.json.decode(answer.body)["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        text = answer.body.decode("utf-8", "replace")
    return f"HTTP {answer.status}: {text[:MAX_ERROR_CHARS]}"
