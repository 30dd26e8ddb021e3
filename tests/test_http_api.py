"""The HTTP server over real sockets and a scripted engine: shapes, errors, limits, disconnects."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_servers import serving
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model
from prometheus_client.parser import text_string_to_metric_families
from service_builders import (
    ScriptedEngine,
    counting,
    make_output,
    make_service,
    silent,
    until,
)

from omniserve.api.http_app import MAX_BODY_BYTES
from omniserve.api.http_server import HttpServer
from omniserve.errors import ConfigError, EngineUnavailable
from omniserve.output_buffer import MAX_PENDING
from omniserve.requests import EngineRequest, RequestOutput

USER = [{"role": "user", "content": "Hello"}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PATIENCE_S = 30.0


def make_body(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": "Hello"} if path == COMPLETIONS else {"messages": USER}
    return {"model": "demo", "max_tokens": 3} | prompt | fields


def make_client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S)


async def ask(checkpoint: Path, path: str, body: Any, engine: Any = None, **options: Any) -> Any:
    """One answer of a server of its own; `body` is JSON or raw bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        serving(make_service(checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        return await http.post(path, content=content, **options)


def events_of(text: str) -> list[Any]:
    """The JSON of every server-sent event; the stream has to end with [DONE]."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def check_error(answer: Any, status: int, param: str | None, part: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"]
    assert error["param"] == param
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


@pytest.mark.asyncio
async def test_completion_body(tiny_checkpoint: Path) -> None:
    body = make_body(COMPLETIONS, logprobs=2, service_tier="flex")
    answer = await ask(tiny_checkpoint, COMPLETIONS, body)
    assert answer.status_code == 200
    raw = answer.json()
    assert raw.pop("service_tier") == "batch"
    completion = Completion.model_validate(raw, strict=True)
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason) == ("0 1 2 ", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None and len(choice.logprobs.tokens) == 3
    assert choice.logprobs.token_logprobs == [-0.5] * 3
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[0] == 0
    assert choice.logprobs.top_logprobs is not None
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 3
    assert isinstance(completion.usage, CompletionUsage)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 3


@pytest.mark.asyncio
async def test_chat_body(tiny_checkpoint: Path) -> None:
    body = make_body(CHAT, logprobs=True, top_logprobs=2, n=2)
    raw = (await ask(tiny_checkpoint, CHAT, body)).json()
    assert raw.pop("service_tier") == "interactive"
    completion = ChatCompletion.model_validate(raw, strict=True)
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice in completion.choices:
        assert choice.message.content == "0 1 2 "
        assert choice.logprobs is not None and choice.logprobs.content is not None
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 2
            assert token.bytes is not None
            assert token.top_logprobs[0].logprob == token.logprob


@pytest.mark.asyncio
async def test_chat_events(tiny_checkpoint: Path) -> None:
    options = {"include_usage": True}
    body = make_body(CHAT, stream=True, stream_options=options, n=2, logprobs=True)
    answer = await ask(tiny_checkpoint, CHAT, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    raw = events_of(answer.text)
    assert {event.pop("service_tier") for event in raw} == {"interactive"}
    events = [ChatCompletionChunk.model_validate(event, strict=True) for event in raw]
    assert len({event.id for event in events}) == 1
    *parts, last = events
    assert last.choices == [] and last.usage is not None
    assert last.usage.completion_tokens == 6
    assert all(part.usage is None for part in parts)
    for index in (0, 1):
        choices = [part.choices[0] for part in parts if part.choices[0].index == index]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == "0 1 2 "
        assert [choice.finish_reason for choice in choices][-1] == "length"
        assert all(choice.finish_reason is None for choice in choices[:-1])
        tokens = [t for c in choices if c.logprobs for t in c.logprobs.content or ()]
        assert len(tokens) == 3


@pytest.mark.asyncio
async def test_completion_events(tiny_checkpoint: Path) -> None:
    body = make_body(COMPLETIONS, stream=True, logprobs=0, prompt=["a", "b"])
    events = events_of((await ask(tiny_checkpoint, COMPLETIONS, body)).text)
    assert "usage" not in events[0]
    for index in (0, 1):
        choices = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "0 1 2 "
        assert choices[-1]["finish_reason"] == "length"
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets) and len(offsets) == 3


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("prompt", "num_choices"),
    [("a", 1), (["a", "b"], 2), ([5, 6], 1), ([[5, 6], [7]], 2)],
)
async def test_prompt_shapes(tiny_checkpoint: Path, prompt: object, num_choices: int) -> None:
    engine = ScriptedEngine()
    body = make_body(COMPLETIONS, prompt=prompt, n=2)
    answer = await ask(tiny_checkpoint, COMPLETIONS, body, engine)
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(2 * num_choices))
    if prompt == [[5, 6], [7]]:
        prompts = [sequence.prompt_token_ids for sequence in engine.started]
        assert prompts == [(5, 6), (5, 6), (7,), (7,)]


@pytest.mark.asyncio
async def test_every_sampling_field_reaches_the_engine(tiny_checkpoint: Path) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "seed": 11,
        "logit_bias": {"7": 2},
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
    }
    more = {"stop": "x", "stop_token_ids": [3, 4], "max_tokens": 2, "logprobs": 1}
    engine = ScriptedEngine()
    answer = await ask(
        tiny_checkpoint, COMPLETIONS, make_body(COMPLETIONS, **fields, **more), engine
    )
    assert answer.status_code == 200, answer.text
    (sequence,) = engine.started
    sampling = sequence.sampling
    for name, value in fields.items():
        expected = {7: 2.0} if name == "logit_bias" else value
        assert getattr(sampling, name) == expected
    assert (sampling.stop, sampling.stop_token_ids) == (("x",), (3, 4))
    assert (sampling.max_tokens, sampling.logprobs) == (2, 1)


@pytest.mark.asyncio
async def test_defaults_are_openais(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        nulls = {"stop": None, "temperature": None, "max_tokens": None, "logprobs": None, "n": None}
        for path in (COMPLETIONS, CHAT):
            answer = await http.post(path, json=make_body(path, **nulls))
            assert answer.status_code == 200, answer.text
        body = make_body(CHAT, max_completion_tokens=4, max_tokens=None)
        await http.post(CHAT, json=body)
    completion, chat, limited = (sequence.sampling for sequence in engine.started)
    assert (completion.temperature, completion.max_tokens, completion.logprobs) == (1.0, 16, None)
    assert chat.max_tokens == 256 - len(engine.started[1].prompt_token_ids)
    assert limited.max_tokens == 4


@pytest.mark.asyncio
async def test_harmless_fields_are_accepted(tiny_checkpoint: Path) -> None:
    assistant = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}
    fields = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "parallel_tool_calls": False,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "b", "name": "n"},
            assistant,
            *USER,
        ],
    }
    answer = await ask(tiny_checkpoint, CHAT, make_body(CHAT, **fields))
    assert answer.status_code == 200, answer.text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("header", "in_body", "expected"),
    [(None, None, "interactive"), ("flex", None, "batch"), ("flex", "voice", "voice")],
)
async def test_tier_in_the_body_wins_over_the_header(
    tiny_checkpoint: Path, header: str | None, in_body: str | None, expected: str
) -> None:
    headers = {"x-omniserve-tier": header} if header else {}
    body = make_body(CHAT, service_tier=in_body)
    answer = await ask(tiny_checkpoint, CHAT, body, headers=headers)
    assert answer.json()["service_tier"] == expected


@pytest.mark.asyncio
async def test_request_id_of_the_client_comes_back(tiny_checkpoint: Path) -> None:
    headers = {"x-request-id": "mine"}
    answer = await ask(tiny_checkpoint, CHAT, make_body(CHAT), headers=headers)
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["id"] == "chatcmpl-mine"


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
    (COMPLETIONS, {"stream_options": {}}, 400, "stream_options", "only together with stream"),
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
                if "stream_options" in fields:
                    body["stream"] = False
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
        (b'{"prompt": "x"}', "model", "is required"),
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


@pytest.mark.asyncio
async def test_models(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        listed = (await http.get("/v1/models")).json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        assert Model.model_validate(model, strict=True).id == "demo"
        assert (await http.get("/v1/models/demo")).json() == model
        check_error(await http.get("/v1/models/gone/too"), 404, "model", "'gone/too'")


@pytest.mark.asyncio
async def test_metrics_are_scraped_after_requests(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        await http.post(CHAT, json=make_body(CHAT))
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    outcomes = {
        (sample.labels["tier"], sample.labels["outcome"]): sample.value
        for sample in families["omniserve_requests"].samples
    }
    assert outcomes["interactive", "ok"] == 1
    assert outcomes["batch", "ok"] == 0


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
async def test_connections_are_reused(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        reader, writer = await asyncio.open_connection(*servers.http.address.split(":"))
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(b'{"state":"ready"}'))
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_stopping_lets_a_running_request_end(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(counting)
    server = HttpServer(make_service(tiny_checkpoint, engine), "127.0.0.1:0")
    await server.start()
    async with make_client(f"http://{server.address}") as http:
        body = make_body(COMPLETIONS, max_tokens=200)
        asking = asyncio.create_task(http.post(COMPLETIONS, json=body))
        await until(lambda: bool(engine.started))
        await server.stop(grace_s=10)
        assert (await asking).json()["usage"]["completion_tokens"] == 200
        with pytest.raises(httpx2.ConnectError):
            await http.get("/health")


@pytest.mark.asyncio
async def test_a_port_in_use_is_named(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = HttpServer(make_service(tiny_checkpoint), address)
        with pytest.raises(ConfigError, match=f"listen.http: cannot listen on {address}"):
            await server.start()
        await server.stop(0)
