"""Servers without a model and streams for them, for tests of the load generator."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from omniserve.bench.load.streams import BacklogStream, TraceStream
from omniserve.bench.load.target import (
    Clock,
    ModelInfo,
    OnTokens,
    StatusReading,
    TargetInfo,
    TierInfo,
    TokenRequest,
)
from omniserve.bench.run_record import StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest

VOCAB_SIZE = 100
MAX_MODEL_LEN = 64

Answer = Callable[[TokenRequest, OnTokens], Coroutine[Any, Any, int]]


async def answer_at_once(request: TokenRequest, on_tokens: OnTokens) -> int:
    await asyncio.sleep(0)
    for _ in range(request.max_tokens):
        on_tokens(1)
    return request.max_tokens


async def never_answer(request: TokenRequest, on_tokens: OnTokens) -> int:
    await asyncio.Event().wait()
    raise AssertionError


@dataclass(slots=True)
class ScriptedTarget:
    """A server in this process that does what `answer` says."""

    answer: Answer = answer_at_once
    clocks: list[Clock] = field(default_factory=list)
    statuses: list[StatusReading] = field(default_factory=list)
    requests: list[TokenRequest] = field(default_factory=list)
    received: list[TokenRequest] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    async def describe(self) -> TargetInfo:
        return TargetInfo(
            "scripted",
            "1",
            "nothing",
            (ModelInfo("demo", VOCAB_SIZE, MAX_MODEL_LEN, "interactive"),),
            (
                TierInfo("interactive", "latency_sensitive", 500, 100),
                TierInfo("batch", "best_effort"),
            ),
        )

    def encode(self, request: TokenRequest) -> bytes:
        self.requests.append(request)
        return str(len(self.requests) - 1).encode()

    async def send(self, payload: bytes, on_tokens: OnTokens) -> int:
        request = self.requests[int(payload)]
        self.received.append(request)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self.answer(request, on_tokens)
        finally:
            self.num_running -= 1

    async def clock(self) -> Clock:
        return self.clocks.pop(0) if self.clocks else {}

    async def watch_status(self, interval_ms: int) -> AsyncIterator[StatusReading]:
        for status in self.statuses:
            yield status

    async def close(self) -> None:
        pass


def chat_stream(
    arrivals_s: list[float], *, prompt_tokens: int = 8, output_tokens: int = 3, tier: str = ""
) -> TraceStream:
    requests = tuple(TraceRequest(at_s, prompt_tokens, output_tokens) for at_s in arrivals_s)
    info = StreamInfo("chat", "latency_sensitive", "", tier)
    return TraceStream(info, Trace("by hand", requests))


def batch_stream(concurrency: int, *, output_tokens: int = 3) -> BacklogStream:
    info = StreamInfo("batch", "best_effort", "", "batch", is_open_loop=False)
    lengths = Trace("lengths", (TraceRequest(0, 5, output_tokens), TraceRequest(0, 7, 2)))
    return BacklogStream(info, lengths, concurrency)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def raw_server(handle: Handler) -> AsyncIterator[str]:
    """A server of bytes on a free port; gives its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Target and body of the next request; raises IncompleteReadError at the end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return lines[0].split(" ")[1], await reader.readexactly(int(headers["content-length"]))


def response(status: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"content-length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
