"""The HTTP server in trouble: bad input, no engine, clients that vanish or do not read."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_servers import serving
from http_client import (
    CHAT,
    COMPLETIONS,
    USER,
    ask,
    check_error,
    make_body,
    make_client,
)
from service_builders import ScriptedEngine, make_output, make_service, silent, until

from omniserve.config_listen import LimitsConfig
from omniserve.errors import EngineUnavailable
from omniserve.output_buffer import MAX_PENDING
from omniserve.requests import EngineRequest, RequestOutput

MAX_BODY_BYTES = LimitsConfig().max_message_bytes

REFUSED: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    (COMPLETIONS, {"model": "gone"}, 404, "model", "'gone' is not served"),
    (COMPLETIONS, {"prompt": ""}, 400, "prompt", "is empty"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt", "must be a string, a list"),
    (COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt", "must be a string, a list"),
    (COMPLETIONS, {"prompt": [True]}, 400, "prompt", "must be a string, a list"),
    (COMPLETIONS, {"prompt": [10**9]}, 400, "prompt", "token id 1000000000"),
    (COMPLETIONS, {"prompt": "word " * 500}, 400, "prompt", "too long"),
    (COMPLETIONS, {"max_tokens": 1000}, 400, "max_tokens", "context of 256"),
    (COMPLETIONS, {"max_tokens": "3"}, 400, "max_tokens", "valid integer"),
    (COMPLETIONS, {"temperature": True}, 400, "temperature", "valid number"),
    (COMPLETIONS, {"temperature": 2.5}, 400, "temperature", "allowed: 0 to 2"),
    (COMPLETIONS, {"seed": 2**70}, 400, "seed", "64-bit"),
    (COMPLETIONS, {"stop": [1]}, 400, "stop", "list of strings"),
    (COMPLETIONS, {"logit_bias": {"x": 1}}, 400, "logit_bias.x", "valid integer"),
    (COMPLETIONS, {"logit_bias": {"99999": 1}}, 400, "logit_bias", "99999"),
    (COMPLETIONS, {"logprobs": 21}, 400, "logprobs", "0 to 20"),
    (COMPLETIONS, {"echo": True}, 400, "echo", "not supported"),
    (COMPLETIONS, {"suffix": "s"}, 400, "suffix", "not supported"),
    (COMPLETIONS, {"best_of": 2}, 400, "best_of", "not supported"),
    (COMPLETIONS, {"service_tier": "gold"}, 400, "tier", "allowed: interactive, voice, batch"),
    (COMPLETIONS, {"messages": USER}, 400, "messages", "unknown field"),
    (COMPLETIONS, {"stream": False, "stream_options": {}}, 400, "stream_options", "only together"),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        400,
        "stream_options",
        "needs include_usage",
    ),
    (CHAT, {"nonsense": 1}, 400, "nonsense", "unknown field"),
    (CHAT, {"messages": []}, 400, "messages", "0 are not allowed"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "is required"),
    (CHAT, {"messages": [{"role": "x", "content": ""}]}, 400, "messages[0].role", "'x'"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    (CHAT, {"modalities": ["audio"]}, 400, "modalities", "not supported"),
    (CHAT, {"top_logprobs": 3}, 400, "top_logprobs", "only together with logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "logprobs", "0 to 20"),
    (CHAT, {"max_completion_tokens": 4}, 400, "max_tokens", "contradicts"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages[0].content",
        "'image_url' is not supported",
    ),
]


@pytest.mark.asyncio
async def test_refusals_name_field_and_reason(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        for path, fields, status, param, part in REFUSED:
            for stream in (False, True):
                body = make_body(path, **{"stream": stream, **fields})
                check_error(await http.post(path, json=body), status, param, part)
    assert not engine.started


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("raw", "param", "part"),
    [
        (b"", None, "not valid JSON"),
        (b'{"model": "demo"', None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b"[]", None, "must be an object"),
        (b'{"prompt": "x"}', "model", "must be given"),
        (b'{"model": "demo", "prompt": "x", "temperature": NaN}', "temperature", "nan"),
        (b'{"model": "demo", "prompt": "x", "top_p": 1e999}', "top_p", "inf"),
    ],
)
async def test_broken_bodies_are_refused(
    tiny_checkpoint: Path, raw: bytes, param: str | None, part: str
) -> None:
    check_error(await ask(tiny_checkpoint, COMPLETIONS, raw), 400, param, part)


@pytest.mark.asyncio
async def test_errors_of_the_server_itself(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        check_error(await http.get("/nope"), 404, None, "Not Found")
        check_error(await http.get(COMPLETIONS), 405, None, "Method Not Allowed")
        check_error(await http.post("/health"), 405, None, "Method Not Allowed")
        large = b" " * (MAX_BODY_BYTES + 1)
        check_error(await http.post(COMPLETIONS, content=large), 413, None, "too large")


@pytest.mark.asyncio
async def test_a_large_body_of_unknown_length_is_refused(tiny_checkpoint: Path) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        for _ in range(MAX_BODY_BYTES // (1 << 20) + 2):
            yield b" " * (1 << 20)

    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        try:
            answer = await http.post(COMPLETIONS, content=parts())
        except httpx2.TransportError:
            return  # The server hung up before all was sent, which is as good.
        check_error(answer, 413, None, "too large")


@pytest.mark.asyncio
async def test_a_length_of_very_many_digits_is_read_as_any_other(tiny_checkpoint: Path) -> None:
    start = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
    async with serving(make_service(tiny_checkpoint)) as servers:
        host, _, port = servers.http.address.rpartition(":")
        for digits, status in (("2", b"400"), ("9" * 19, b"413")):
            reader, writer = await asyncio.open_connection(host, int(port))
            length = "0" * 5000 + digits
            writer.write(f"{start}\r\ncontent-length: {length}\r\n\r\n[]".encode())
            assert (await reader.readline()).split()[1] == status
            writer.close()


@pytest.mark.asyncio
async def test_no_engine_is_503_everywhere(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(ready=False, state="restarting")
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        for stream in (False, True):
            answer = await http.post(CHAT, json=make_body(CHAT, stream=stream))
            check_error(answer, 503, None, "restarting")
            assert answer.headers["retry-after"] == "1"
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"state": "restarting"})
        engine.ready, engine.state = True, "ready"
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (200, {"state": "ready"})


async def dying(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """Two tokens, a pause in which they are sent, then the end of the engine."""
    yield make_output(request, 0, 5)
    yield make_output(request, 1, 5)
    await asyncio.sleep(0.05)
    raise EngineUnavailable("the engine was lost")


@pytest.mark.asyncio
async def test_an_error_in_the_stream_is_an_event(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(dying)
    answer = await ask(tiny_checkpoint, CHAT, make_body(CHAT, stream=True), engine)
    assert answer.status_code == 200
    last = json.loads(answer.text.rstrip("\n").rpartition("data: ")[2])
    assert last["error"]["message"] == "the engine was lost"
    assert "[DONE]" not in answer.text
    check_error(await ask(tiny_checkpoint, CHAT, make_body(CHAT), engine), 503, None, "lost")


async def exploding(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    raise ZeroDivisionError("private detail")
    yield make_output(request, 0, 1)


@pytest.mark.asyncio
async def test_the_unexpected_is_500_and_says_nothing(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stream in (False, True):
        caplog.clear()
        body = make_body(CHAT, stream=stream)
        answer = await ask(tiny_checkpoint, CHAT, body, ScriptedEngine(exploding))
        check_error(answer, 500, None, "internal error")
        assert "private" not in answer.text
        failures = [record for record in caplog.records if record.exc_info]
        assert [record.message for record in failures] == ["http_request_failed"]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_vanished_client_frees_the_engine(
    tiny_checkpoint: Path, path: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        async with make_client(servers.url) as http:
            asking = asyncio.create_task(http.post(path, json=make_body(path, stream=stream, n=2)))
            await until(lambda: len(engine.running) == 2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not engine.running)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.asyncio
async def test_leaving_in_the_middle_of_a_stream_frees_the_engine(tiny_checkpoint: Path) -> None:
    async def endless(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        for place in range(10**9):
            await asyncio.sleep(0.001)
            yield make_output(request, place, 10**9)

    engine = ScriptedEngine(endless)
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        async with http.stream("POST", CHAT, json=make_body(CHAT, stream=True)) as answer:
            async for line in answer.aiter_lines():
                if "content" in line:
                    break
        await until(lambda: not engine.running)


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_cut_off(tiny_checkpoint: Path) -> None:
    async def flood(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        num_tokens = request.sampling.max_tokens or 1
        for place in range(num_tokens):
            await asyncio.sleep(0)
            yield make_output(request, place, num_tokens, text="x" * 1000)

    engine = ScriptedEngine(flood, max_model_len=4 * MAX_PENDING)
    body = make_body(COMPLETIONS, stream=True, max_tokens=3 * MAX_PENDING)
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        async with http.stream("POST", COMPLETIONS, json=body) as answer:
            await until(lambda: bool(engine.started) and not engine.running)
            text = "".join([part async for part in answer.aiter_text()])
    last = json.loads(text.rstrip("\n").rpartition("data: ")[2])
    assert "unread" in last["error"]["message"]
    assert "[DONE]" not in text


@pytest.mark.asyncio
async def test_a_path_with_one_slash_too_many_is_not_found(tiny_checkpoint: Path) -> None:
    """Whatever comes after the question mark."""
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        for query in ("", "?%ff", "?a=\u00e9"):
            check_error(await http.post(f"{CHAT}/{query}"), 404, None, "Not Found")
            check_error(await http.get(f"/health/{query}"), 404, None, "Not Found")


@pytest.mark.asyncio
async def test_names_of_unknown_fields_are_cut_and_printable(tiny_checkpoint: Path) -> None:
    for fields in ({"\x1b[31m" + "x" * 5000: 1}, {"logit_bias": {"\x00" + "y" * 5000: 1}}):
        answer = await ask(tiny_checkpoint, COMPLETIONS, make_body(COMPLETIONS, **fields))
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400
        assert message.isprintable()
        assert len(message) < 300
