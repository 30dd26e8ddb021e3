"""Clients of a daemon: chat over gRPC, completions over OpenAI HTTP, status over gRPC."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import httpx

from omniserve.admin_address import admin_target_of
from omniserve.demo.load import SYSTEM_MESSAGE, ChatTurn, Document
from omniserve.demo.measure import Tier
from omniserve.demo.options import Addresses
from omniserve.errors import OmniServeError
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

TEMPERATURE = 0.8
CONNECT_TIMEOUT_S = 10.0
MAX_ERROR_CHARS = 200
OnTokens = Callable[[int], None]
"""Called with the number of tokens at the moment they come."""


class RequestFailed(OmniServeError):
    """A request did not end as it has to."""


class RequestRefused(RequestFailed):
    """The daemon has more to do than it promises to keep up with, and says so."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a daemon says about itself."""

    model: str
    architecture: str
    num_parameters: int
    device: str
    version: str
    interactive: Tier
    batch: Tier


class DaemonClients:
    """Both ways to one daemon, open while the context is."""

    def __init__(self, addresses: Addresses) -> None:
        """Raises ConfigError."""
        # A proxy of the environment has no business between a machine and itself.
        options = (("grpc.enable_http_proxy", 0),)
        self._channel = grpc.aio.insecure_channel(addresses.grpc, options)
        admin = admin_target_of(addresses.grpc) or addresses.grpc
        self._admin_channel = grpc.aio.insecure_channel(admin, options)
        self._inference = omniserve_pb2_grpc.InferenceStub(self._channel)
        self._admin = omniserve_pb2_grpc.AdminStub(self._admin_channel)
        self._http = httpx.AsyncClient(
            base_url=f"http://{addresses.http}",
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()
        await self._channel.close(None)
        await self._admin_channel.close(None)

    async def describe(self, model: str | None) -> Served:
        """Raises RequestFailed where the daemon does not answer or lacks what is needed."""
        try:
            listed = await self._inference.ListModels(
                pb.ListModelsRequest(), timeout=CONNECT_TIMEOUT_S
            )
            status = await self._admin.GetStatus(pb.GetStatusRequest(), timeout=CONNECT_TIMEOUT_S)
            # The first use of a client imports much; that must not delay the requests measured.
            health = await self._http.get("/health", timeout=CONNECT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(f"cannot ask the daemon what it serves: {_said(error)}") from None
        except httpx.HTTPError as error:
            raise RequestFailed(f"cannot reach the daemon over HTTP: {_http_said(error)}") from None
        if health.status_code != httpx.codes.OK:
            raise RequestFailed(f"the daemon is not ready: {health.text[:MAX_ERROR_CHARS]}")
        chosen = next((each for each in listed.models if model in (None, each.name)), None)
        if chosen is None:
            names = ", ".join(each.name for each in listed.models) or "none yet"
            raise RequestFailed(f"--model {model}: is not served; the daemon serves {names}")
        return Served(
            model=chosen.name,
            architecture=chosen.architecture,
            num_parameters=chosen.num_parameters,
            device=status.device,
            version=status.version,
            interactive=_first_tier(listed.tiers, "latency_sensitive"),
            batch=_first_tier(listed.tiers, "best_effort"),
        )

    async def chat(self, served: Served, turn: ChatTurn, on_tokens: OnTokens) -> None:
        """Streams one answer over gRPC; raises RequestFailed."""
        messages = [
            pb.ChatMessage(role="system", content=SYSTEM_MESSAGE),
            pb.ChatMessage(role="user", content=turn.question),
        ]
        request = pb.GenerateRequest(
            model=served.model,
            chat=pb.Chat(messages=messages),
            tier=served.interactive.name,
            sampling=pb.Sampling(
                max_tokens=turn.max_tokens,
                temperature=TEMPERATURE,
                seed=turn.seed,
                ignore_eos=True,
            ),
        )
        num_tokens = 0
        try:
            async for chunk in self._inference.Generate(request):
                if chunk.token_ids:
                    num_tokens += len(chunk.token_ids)
                    on_tokens(len(chunk.token_ids))
        except grpc.aio.AioRpcError as error:
            is_refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            raise (RequestRefused if is_refused else RequestFailed)(_said(error)) from None
        _check_complete(num_tokens, turn.max_tokens)

    async def complete(self, served: Served, document: Document, on_tokens: OnTokens) -> int:
        """Streams one completion over HTTP and returns its number of tokens; raises RequestFailed.

        Events do not say how many tokens they hold: each is told as one until the end.
        """
        body = {
            "model": served.model,
            "prompt": document.prompt,
            "service_tier": served.batch.name,
            "max_tokens": document.max_tokens,
            "temperature": TEMPERATURE,
            "seed": document.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        num_tokens = 0
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    is_refused = response.status_code == httpx.codes.TOO_MANY_REQUESTS
                    problem = _http_error(response.status_code, await response.aread())
                    raise (RequestRefused if is_refused else RequestFailed)(problem)
                async for event in _events(response):
                    if event["choices"]:
                        on_tokens(1)
                    elif event["usage"]:
                        num_tokens = event["usage"]["completion_tokens"]
        except httpx.HTTPError as error:
            raise RequestFailed(_http_said(error)) from None
        _check_complete(num_tokens, document.max_tokens)
        return num_tokens

    async def watch_status(self, interval_ms: int) -> AsyncIterator[pb.Status]:
        """Ends where the daemon does; then the requests themselves tell what happened."""
        try:
            async for status in self._admin.WatchStatus(
                pb.WatchStatusRequest(interval_ms=interval_ms)
            ):
                yield status
        except grpc.aio.AioRpcError:
            return


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines. Only a line feed ends one: generated text may hold what Unicode calls breaks."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in _lines(response):
        data = line.removeprefix(b"data: ")
        if data == line or data == b"[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise RequestFailed(f"HTTP stream: {event['error'].get('message', 'unknown error')}")
        yield event


def _first_tier(tiers: Any, service_class: str) -> Tier:
    for tier in tiers:
        if tier.service_class == service_class:
            objectives = {
                name: getattr(tier, name) if tier.HasField(name) else None
                for name in ("ttft_ms", "tpot_ms", "percentile")
            }
            return Tier(tier.name, service_class, **objectives)
    raise RequestFailed(f"the demo needs a tier of class {service_class}; the daemon has none")


def _check_complete(num_tokens: int, expected: int) -> None:
    if num_tokens != expected:
        raise RequestFailed(f"the answer has {num_tokens} tokens instead of {expected}")


def _said(error: grpc.aio.AioRpcError) -> str:
    return f"gRPC {error.code().name}: {(error.details() or '')[:MAX_ERROR_CHARS]}"


def _http_said(error: httpx.HTTPError) -> str:
    return f"HTTP {type(error).__name__}: {str(error)[:MAX_ERROR_CHARS]}"


def _http_error(status: int, body: bytes) -> str:
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = body.decode("utf-8", "replace")
    return f"HTTP {status}: {text[:MAX_ERROR_CHARS]}"
