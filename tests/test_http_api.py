"""The HTTP server over real sockets and a scripted engine: shapes, errors, limits, disconnects."""

import asyncio
import json
import socket
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
    events_of,
    make_body,
    make_client,
)
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model
from prometheus_client.parser import text_string_to_metric_families
from service_builders import (
    ScriptedEngine,
    counting,
    half_piggybacked,
    held_back,
    make_service,
    until,
)

from omniserve.api.http_server import HttpServer
from omniserve.errors import ConfigError


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
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_usage_tells_piggybacked_tokens(tiny_checkpoint: Path, path: str) -> None:
    engine = ScriptedEngine(half_piggybacked)
    details = {"piggybacked_tokens": 2}
    whole = await ask(tiny_checkpoint, path, make_body(path, max_tokens=5), engine)
    assert whole.json()["usage"]["completion_tokens_details"] == details
    body = make_body(path, max_tokens=5, stream=True, stream_options={"include_usage": True})
    *_, last = events_of((await ask(tiny_checkpoint, path, body, engine)).text)
    assert last["usage"]["completion_tokens_details"] == details


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_every_event_tells_the_usage_so_far(tiny_checkpoint: Path, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = make_body(path, max_tokens=5, stream=True, stream_options=options)
    answer = await ask(tiny_checkpoint, path, body, ScriptedEngine(held_back))
    *parts, last = events_of(answer.text)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    # A chat says who speaks in an event of its own, at the first token.
    assert counts == [1, 2, 3, 4, 5] if path == COMPLETIONS else [1, 1, 2, 3, 4, 5]
    assert last["usage"]["completion_tokens"] == 5
    assert last["choices"] == []


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
        assert offsets == sorted(set(offsets)) and len(offsets) == 3


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
async def test_large_bodies_are_parsed_alike(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(max_model_len=1 << 20)
    prompt = [7] * 60_000
    answer = await ask(tiny_checkpoint, COMPLETIONS, make_body(COMPLETIONS, prompt=prompt), engine)
    assert answer.json()["usage"]["prompt_tokens"] == 60_000
    wrong = make_body(COMPLETIONS, prompt=[*prompt, "a"])
    check_error(await ask(tiny_checkpoint, COMPLETIONS, wrong, engine), 400, "prompt", "must be")


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


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"nonsense": 1}, {}, 400),
        ({"temperature": "x"}, {}, 400),
        ({}, {"content-type": "text/plain"}, 415),
    ],
)
async def test_errors_before_there_is_a_request_have_an_id_too(
    tiny_checkpoint: Path, fields: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    body = make_body(CHAT, **fields)
    answer = await ask(tiny_checkpoint, CHAT, body, headers=headers | {"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")
    answer = await ask(tiny_checkpoint, CHAT, body, headers=headers)
    assert answer.headers["x-request-id"].startswith("req-")
    answer = await ask(tiny_checkpoint, CHAT, body, headers=headers | {"x-request-id": "a\tb"})
    assert "x-request-id" not in answer.headers


@pytest.mark.asyncio
async def test_the_first_of_headers_that_are_sent_twice_counts(tiny_checkpoint: Path) -> None:
    headers = [("x-omniserve-tier", "flex"), ("x-omniserve-tier", "voice")]
    answer = await ask(tiny_checkpoint, CHAT, make_body(CHAT), headers=headers)
    assert answer.json()["service_tier"] == "batch"


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


@pytest.mark.asyncio
async def test_connections_are_reused(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        reader, writer = await asyncio.open_connection(*servers.http.address.split(":"))
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
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
        await server.stop(grace_s=60)
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


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-8", 200),
    ],
)
async def test_what_a_web_page_may_send_unasked_is_refused(
    tiny_checkpoint: Path, kind: str, status: int
) -> None:
    headers = {"content-type": kind}
    answer = await ask(tiny_checkpoint, COMPLETIONS, make_body(COMPLETIONS), headers=headers)
    if status == 200:
        assert answer.status_code == 200
    else:
        check_error(answer, status, None, "allowed: application/json")


@pytest.mark.asyncio
async def test_a_body_that_does_not_say_what_it_is_is_refused(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        del http.headers["content-type"]
        answer = await http.post(COMPLETIONS, content=json.dumps(make_body(COMPLETIONS)).encode())
    check_error(answer, 415, None, "content-type: '' is not served; allowed: application/json")


@pytest.mark.asyncio
async def test_without_tenants_nothing_is_served_by_a_name_that_others_may_give(
    tiny_checkpoint: Path,
) -> None:
    """Their pages would else be of the same origin, to a browser, and could read the answers."""
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        port = servers.url.rpartition(":")[2]
        for host, status in ((f"evil.example:{port}", 421), (f"localhost:{port}", 200)):
            headers = {"host": host}
            answers = [
                await http.get(path, headers=headers)
                for path in ("/health", "/metrics", "/v1/models")
            ]
            answers += [
                await http.post(path, json=make_body(path), headers=headers)
                for path in (COMPLETIONS, CHAT)
            ]
            assert [answer.status_code for answer in answers] == [status] * 5
            if status == 421:
                check_error(answers[-1], status, None, "host: 'evil.example")
