"""The load generator's HTTP client, on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from load_builders import Handler, raw_server, read_request, response

from omniserve.bench.load.http_client import HttpAddress
from omniserve.bench.load.http_target import HttpTarget
from omniserve.bench.load.null_server import NullConnection, Pace
from omniserve.bench.load.target import RequestFailed, RequestRejected, TokenRequest
from omniserve.errors import ConfigError

REQUEST = TokenRequest("demo", (1, 2, 3), 4, "batch", {"priority": 7})


def nobody(num_tokens: int) -> None:
    raise AssertionError


@asynccontextmanager
async def target_of(handle: Handler) -> AsyncIterator[HttpTarget]:
    async with raw_server(handle) as url:
        target = HttpTarget(url)
        try:
            yield target
        finally:
            await target.close()


@asynccontextmanager
async def null_target(pace: Pace) -> AsyncIterator[HttpTarget]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NullConnection(pace), "127.0.0.1", 0)
    async with server:
        target = HttpTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield target
        finally:
            await target.close()


def answering(*answers: bytes) -> Handler:
    """One connection after another gets the next answer to each of its requests."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            await read_request(reader)
            writer.write(left.pop(0))
            await writer.drain()

    return handle


@pytest.mark.asyncio
@pytest.mark.parametrize("pace", [Pace(), Pace(ttft_ms=2, tpot_ms=1), Pace(tpot_ms=1)])
async def test_every_token_of_the_null_server_is_told(pace: Pace) -> None:
    async with null_target(pace) as target:
        info = await target.describe()
        assert [model.name for model in info.models] == ["null"]
        payload = target.encode(REQUEST)
        for _ in range(2):
            told: list[int] = []
            assert await target.send(payload, told.append) == 4
            assert told == [1, 1, 1, 1]
        assert await target.clock() == {}


@pytest.mark.asyncio
async def test_the_null_server_refuses_no_tokens() -> None:
    async with null_target(Pace(tpot_ms=1)) as target:
        with pytest.raises(RequestFailed, match="HTTP 400"):
            await target.send(target.encode(TokenRequest("null", (1,), 0)), nobody)


@pytest.mark.asyncio
async def test_many_requests_at_a_time_do_not_mix() -> None:
    async with null_target(Pace(ttft_ms=1, tpot_ms=1)) as target:
        await target.describe()
        lengths = range(1, 40)
        told: dict[int, int] = dict.fromkeys(lengths, 0)

        async def send(length: int) -> int:
            def note(num_tokens: int) -> None:
                told[length] += num_tokens

            return await target.send(target.encode(TokenRequest("null", (1,), length)), note)

        assert await asyncio.gather(*map(send, lengths)) == list(lengths)
        assert told == {length: length for length in lengths}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("owner", "tier", "counts"),
    [("omniserve", "batch", True), ("vllm", None, True), ("somebody", None, None)],
)
async def test_servers_are_told_what_they_understand(
    owner: str, tier: str | None, counts: bool | None
) -> None:
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, sent = await read_request(reader)
            if path == "/v1/models":
                model = {"id": "demo", "owned_by": owner, "max_model_len": 99}
                writer.write(response("200 OK", json.dumps({"data": [model]}).encode()))
            elif path == "/v1/completions":
                bodies.append(sent)
                writer.write(response("200 OK", b'data: {"choices":[{}]}\n\ndata: [DONE]\n\n'))
            else:
                writer.write(response("404 Not Found", b""))

    async with target_of(handle) as target:
        info = await target.describe()
        assert info.models[0].max_model_len == 99
        await target.send(target.encode(REQUEST), lambda num_tokens: None)
    body = json.loads(bodies[0])
    assert body["prompt"] == [1, 2, 3]
    assert (body["max_tokens"], body["priority"], body["ignore_eos"]) == (4, 7, True)
    assert body.get("service_tier") == tier
    assert body["stream_options"].get("continuous_usage_stats") == counts


@pytest.mark.asyncio
@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_a_refusal_is_a_rejection(status: str) -> None:
    body = json.dumps({"error": {"message": "come back later"}}).encode()
    async with target_of(answering(response(status, body))) as target:
        with pytest.raises(RequestRejected, match=f"HTTP {status[:3]}: come back later"):
            await target.send(target.encode(REQUEST), nobody)


@pytest.mark.asyncio
async def test_other_statuses_are_failures_and_the_connection_is_used_again() -> None:
    answers = (response("500 Oh", b"no JSON"), response("400 Bad", b'{"error": {"message": "x"}}'))
    async with target_of(answering(*answers)) as target:
        for message in ("HTTP 500: no JSON", "HTTP 400: x"):
            with pytest.raises(RequestFailed, match=message) as raised:
                await target.send(target.encode(REQUEST), nobody)
            assert not isinstance(raised.value, RequestRejected)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed before the answer's end"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ndata: ", "closed before the answer's end"),
        (b"SSH-2.0-hello\r\n", "the answer cannot be read"),
        (response("200 OK", b'data: {"choices":[{}]}\n\n'), "ended without"),
        (response("200 OK", b"data: nonsense\n\n"), "an event cannot be read"),
    ],
)
async def test_an_answer_that_breaks_is_a_failure(answer: bytes, message: str) -> None:
    async with target_of(answering(answer)) as target:
        with pytest.raises(RequestFailed, match=message):
            await target.send(target.encode(REQUEST), lambda num_tokens: None)


@pytest.mark.asyncio
async def test_a_connection_that_must_not_be_used_again_is_not() -> None:
    numbers: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        numbers.append(len(numbers))
        await read_request(reader)
        body = b'data: {"choices":[{}]}\n\ndata: [DONE]\n\n'
        writer.write(response("200 OK", body, {"connection": "close"}))

    async with target_of(handle) as target:
        for _ in range(2):
            assert await target.send(target.encode(REQUEST), lambda num_tokens: None) == 1
    assert numbers == [0, 1]


@pytest.mark.asyncio
async def test_a_cancelled_request_is_cancelled_at_the_server() -> None:
    gone = asyncio.Event()
    begun = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        try:
            await reader.read()
        finally:
            gone.set()

    async with target_of(handle) as target:
        sending = asyncio.create_task(target.send(target.encode(REQUEST), nobody))
        await begun.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(gone.wait(), 60)


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_named() -> None:
    async with raw_server(answering()) as url:
        pass
    target = HttpTarget(url)
    with pytest.raises(RequestFailed, match=r"HTTP 127\.0\.0\.1:\d+: "):
        await target.describe()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://somewhere:8000", ("somewhere", 8000, "")),
        ("127.0.0.1:8000", ("127.0.0.1", 8000, "")),
        ("http://somewhere/", ("somewhere", 80, "")),
        ("http://[::1]:8000/v1", ("::1", 8000, "")),
        ("http://somewhere:1/proxy/v1/", ("somewhere", 1, "/proxy")),
    ],
)
def test_addresses(url: str, expected: tuple[str, int, str]) -> None:
    assert HttpAddress.parse(url) == HttpAddress(*expected)


@pytest.mark.parametrize(
    "url", ["https://somewhere:1", "http://:8000", "http://a:99999", "http://"]
)
def test_addresses_that_are_wrong_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTP address"):
        HttpAddress.parse(url)
