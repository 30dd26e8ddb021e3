"""Deadlines of requests: what counts as one, and what happens when it passes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import serving
from http_client import CHAT, COMPLETIONS, ask, check_error, make_body, make_client
from service_builders import (
    ScriptedEngine,
    complete,
    make_generation_request,
    make_output,
    make_service,
    sample,
    silent,
    until,
)

from omniserve import generation_stream
from omniserve.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest
from omniserve.generation import GenerationRequest
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb

SOON_MS = 60
CALL_S = 3.0
"""A call that lasts so long has reached the engine before."""


def num_requests(service: GenerationService, outcome: str) -> float:
    labels = ('model="demo"', 'tier="interactive"', f'outcome="{outcome}"')
    return sample(service.metrics, "omniserve_requests_total", labels)


async def stalling(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """A token, and then nothing for ever."""
    yield make_output(request, 0, 5)
    await asyncio.Event().wait()


async def all_at_once(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """Five tokens before anything else has its turn."""
    for place in range(5):
        yield make_output(request, place, 5)


async def too_late(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """What the engine says of a request whose deadline passed on its way."""
    error = "the deadline passed 3 ms before it could run"
    yield RequestOutput(
        request.request_id, "", (), finish_reason="error", error=error, missed_deadline=True
    )


def standing_service(
    checkpoint: Path, engine: ScriptedEngine, request: GenerationRequest
) -> GenerationService:
    """For it no time passes on the request's way to the engine: the deadline passes there."""
    return make_service(checkpoint, engine, clock=lambda: request.arrival_s)


def make_request(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model="demo", text="Hello", sampling=pb.Sampling(temperature=0.0, max_tokens=8), **fields
    )


@pytest.mark.asyncio
async def test_when_it_passes_the_request_ends_and_the_engine_forgets_it(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine(stalling)
    request = replace(make_generation_request(n=3), deadline_ms=SOON_MS)
    service = standing_service(tiny_checkpoint, engine, request)
    texts = []
    with pytest.raises(DeadlineExceeded):
        async with await service.start(request) as stream:
            async for chunk in stream:
                texts.append(chunk.text)
    # What came in time is delivered.
    assert texts == ["0 "] * 3
    assert not engine.running
    assert (num_requests(service, "late"), num_requests(service, "cancelled")) == (1, 0)


@pytest.mark.asyncio
async def test_nobody_has_to_read_for_the_engine_to_stop(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    request = replace(make_generation_request(), deadline_ms=SOON_MS)
    async with await standing_service(tiny_checkpoint, engine, request).start(request):
        await until(lambda: bool(engine.started) and not engine.running)


@pytest.mark.asyncio
async def test_what_is_complete_in_time_may_be_read_later(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(all_at_once)
    request = replace(make_generation_request(), deadline_ms=SOON_MS)
    service = standing_service(tiny_checkpoint, engine, request)
    async with await service.start(request) as stream:
        await asyncio.sleep(2 * SOON_MS / 1e3)
        assert (await stream.result()).choices[0].text == "0 1 2 3 4 "
    assert num_requests(service, "ok") == 1


@pytest.mark.asyncio
async def test_the_earlier_deadline_reaches_the_engine(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    plain = make_generation_request()
    for deadline_ms, call_s in (
        *((None, None), (900_000, None), (None, 500.0)),
        *((900_000, 500.0), (400_000, 500.0)),
    ):
        call_deadline_s = None if call_s is None else plain.arrival_s + call_s
        await complete(
            service, replace(plain, deadline_ms=deadline_ms, call_deadline_s=call_deadline_s)
        )
    left = [
        None if each.deadline_s is None else each.deadline_s - plain.arrival_s
        for each in engine.started
    ]
    assert left[0] is None
    assert left[1:] == pytest.approx([900.0, 500.0, 500.0, 400.0])
    assert {each.arrival_s for each in engine.started} == {plain.arrival_s}


@pytest.mark.asyncio
async def test_a_request_that_is_late_already_never_reaches_the_engine(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    request = make_generation_request()
    request = replace(request, arrival_s=request.arrival_s - 1, deadline_ms=500)
    with pytest.raises(DeadlineExceeded):
        await service.start(request)
    assert not engine.started
    assert num_requests(service, "late") == 1


@pytest.mark.asyncio
async def test_what_the_engine_refuses_as_late_is_late(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(too_late))
    with pytest.raises(DeadlineExceeded, match="3 ms before"):
        await complete(service, make_generation_request())


@pytest.mark.asyncio
async def test_a_failure_before_it_is_what_counts(tiny_checkpoint: Path) -> None:
    async def dying(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        yield make_output(request, 0, 5)
        raise EngineUnavailable("the engine was lost")

    service = make_service(tiny_checkpoint, ScriptedEngine(dying))
    with pytest.raises(EngineUnavailable):
        await complete(service, replace(make_generation_request(), deadline_ms=60_000))


@pytest.mark.asyncio
@pytest.mark.parametrize("deadline_ms", [0, -1, 86_400_001])
async def test_wrong_deadlines_are_refused(tiny_checkpoint: Path, deadline_ms: int) -> None:
    service = make_service(tiny_checkpoint)
    with pytest.raises(InvalidRequest, match=f"^deadline_ms: {deadline_ms} .* 1 to 86400000$"):
        await service.start(replace(make_generation_request(), deadline_ms=deadline_ms))
    body = make_body(CHAT, deadline_ms=deadline_ms)
    answer = await ask(tiny_checkpoint, CHAT, body)
    check_error(answer, 400, "deadline_ms", "allowed: 1 to 86400000")


@pytest.mark.asyncio
async def test_a_deadline_is_a_whole_number(tiny_checkpoint: Path) -> None:
    for wrong in (1.5, "100", True):
        answer = await ask(tiny_checkpoint, CHAT, make_body(CHAT, deadline_ms=wrong))
        check_error(answer, 400, "deadline_ms", "must be a valid integer")


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["Generate", "Complete"])
@pytest.mark.parametrize("script", [silent, stalling, too_late])
async def test_grpc_says_deadline_exceeded(tiny_checkpoint: Path, method: str, script: Any) -> None:
    engine = ScriptedEngine(script)
    service = make_service(tiny_checkpoint, engine)
    async with serving(service) as servers:
        call = getattr(servers.inference, method)(make_request(deadline_ms=SOON_MS))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            if method == "Generate":
                async for _ in call:
                    pass
            else:
                await call
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "the deadline passed" in str(failed.value.details())
        await until(lambda: not engine.running)
    assert num_requests(service, "late") == 1


@pytest.mark.asyncio
async def test_the_deadline_of_a_call_counts_as_one(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By so much the client's clock is ahead that began as the call was on its way.
    monkeypatch.setattr(generation_stream, "_AHEAD_S", CALL_S)
    engine = ScriptedEngine(silent)
    service = make_service(tiny_checkpoint, engine)
    async with serving(service) as servers:
        call = servers.inference.Complete(make_request(deadline_ms=60_000), timeout=CALL_S)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not engine.running)
        (sequence,) = engine.started
        assert sequence.deadline_s is not None and sequence.arrival_s is not None
        assert 0.0 < sequence.deadline_s - sequence.arrival_s <= CALL_S
        await until(lambda: num_requests(service, "late") == 1)
    assert num_requests(service, "cancelled") == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
async def test_http_says_504_where_nothing_was_sent_yet(
    tiny_checkpoint: Path, path: str, stream: bool
) -> None:
    body = make_body(path, deadline_ms=SOON_MS, stream=stream)
    answer = await ask(tiny_checkpoint, path, body, ScriptedEngine(silent))
    check_error(answer, 504, None, "the deadline passed")
    assert "retry-after" not in answer.headers


@pytest.mark.asyncio
async def test_a_stream_that_has_begun_ends_with_an_error_event(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(stalling)
    body = make_body(COMPLETIONS, deadline_ms=SOON_MS, stream=True)
    service = standing_service(tiny_checkpoint, engine, make_generation_request())
    async with serving(service) as servers, make_client(servers.url) as http:
        answer = await http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200
    first, last = (block for block in answer.text.split("\n\n") if block)
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "0 "
    assert "the deadline passed" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert not engine.running
