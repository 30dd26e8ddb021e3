"""The servers that OmniServe stands on, with nothing of it: `api_raw_server.py grpc|http CPU`.

A plain `grpc.aio` server, and plain uvicorn with one ASGI function. Their messages are as large as
OmniServe's and made beforehand but for a stamp; what they do is what no server on them can save.
Requests say their pace as to the null engine. Prints the port once it listens; runs until killed.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import uvicorn
from api_stamps import STAMP_CHARS, now_us, stamp_of

from omniserve.v1 import omniserve_pb2 as pb

PLACE = "#" * STAMP_CHARS
CHUNK = pb.GenerateChunk(text=PLACE, token_ids=(7,), request_id="req-0123456789abcdef")
EVENT = (
    'data: {"id":"cmpl-req-0123456789abcdef","created":1700000000,"model":"null",'
    '"service_tier":"chat","object":"text_completion","choices":[{"index":0,"text":"'
    + PLACE
    + '","logprobs":null,"finish_reason":null}]}\n\n'
)


class Ticker:
    """Steps for everybody who waits, as an engine makes them."""

    def __init__(self) -> None:
        self._num_users = 0
        self._task: asyncio.Task[None] | None = None
        self._stamps: list[bytes] = []
        self._next = asyncio.Event()

    async def stamps(self, interval_us: int) -> AsyncGenerator[bytes, None]:
        """One for each step from now on; an interval of 0 makes them without end."""
        if not interval_us:
            while True:
                yield stamp_of(now_us())
        async with self._running(interval_us):
            place = len(self._stamps)
            while True:
                while place >= len(self._stamps):
                    await self._next.wait()
                yield self._stamps[place]
                place += 1

    @asynccontextmanager
    async def _running(self, interval_us: int) -> AsyncIterator[None]:
        self._num_users += 1
        if self._task is None:
            self._task = asyncio.create_task(self._tick(interval_us / 1e6))
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._task.cancel()
                self._task = None
                self._stamps = []

    async def _tick(self, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())
            self._stamps.append(stamp_of(now_us()))
            self._next.set()
            self._next = asyncio.Event()


async def serve_grpc() -> None:
    ticker = Ticker()
    before, after = CHUNK.SerializeToString().split(PLACE.encode())

    async def generate(
        request: pb.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        num_left = request.sampling.max_tokens
        async with aclosing(ticker.stamps(request.sampling.seed)) as stamps:
            async for stamp in stamps:
                await context.write(before + stamp + after)
                num_left -= 1
                if not num_left:
                    return

    handler: grpc.RpcMethodHandler[pb.GenerateRequest, bytes] = (
        grpc.unary_stream_rpc_method_handler(
            generate, request_deserializer=pb.GenerateRequest.FromString
        )
    )
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    service = "omniserve.v1.Inference"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Generate": handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


async def serve_http() -> None:
    ticker = Ticker()
    before, after = EVENT.encode().split(PLACE.encode())
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads((await receive())["body"])
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(_cancel_on_disconnect(receive, task))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            num_left = asked["max_tokens"]
            async with aclosing(ticker.stamps(asked["seed"])) as stamps:
                async for stamp in stamps:
                    # uvicorn mostly does not wait, and others have to have their turn.
                    await asyncio.sleep(0)
                    body = before + stamp + after
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    num_left -= 1
                    if not num_left:
                        break
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        except asyncio.CancelledError:
            task.uncancel()
        finally:
            watcher.cancel()

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
    )
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([listener])


async def _cancel_on_disconnect(receive: Any, task: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def main(wire: str, cpu: int) -> None:
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    await (serve_grpc if wire == "grpc" else serve_http)()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
