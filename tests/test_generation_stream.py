"""Running requests: how they end early, fail, and wait for slow clients."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
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

from omniserve.errors import ClientTooSlow, EngineError, EngineUnavailable, RequestCancelled
from omniserve.generation import Chunk
from omniserve.output_buffer import MAX_PENDING
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams


@pytest.mark.asyncio
async def test_leaving_early_aborts_every_sequence(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    service = make_service(tiny_checkpoint, engine)
    async with await service.start(make_generation_request(n=4)):
        await until(lambda: len(engine.running) == 4)
    assert not engine.running
    labels = ('model="demo"', 'tier="interactive"', 'outcome="cancelled"')
    assert sample(service.metrics, "omniserve_requests_total", labels) == 1


@pytest.mark.asyncio
async def test_cancelling_the_reader_aborts(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    service = make_service(tiny_checkpoint, engine)
    reader = asyncio.create_task(complete(service, make_generation_request()))
    await until(lambda: len(engine.running) == 1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert not engine.running


async def failing(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """Choice 1 fails after a token; the others stay silent after theirs."""
    yield make_output(request, 0, 5)
    if not request.request_id.endswith("#1"):
        await asyncio.Event().wait()
    yield replace(make_output(request, 1, 5), finish_reason="error", error="out of luck")


async def dying(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    yield make_output(request, 0, 5)
    raise EngineUnavailable("the engine was lost")


async def cancelling(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    yield replace(make_output(request, 0, 5), finish_reason="cancelled")


async def raising(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    yield make_output(request, 0, 5)
    raise ZeroDivisionError


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (failing, EngineError),
        (dying, EngineUnavailable),
        (cancelling, RequestCancelled),
        (raising, ZeroDivisionError),
    ],
)
async def test_a_failure_ends_the_whole_request(
    tiny_checkpoint: Path, script: object, kind: type[Exception]
) -> None:
    engine = ScriptedEngine(script)  # type: ignore[arg-type]
    service = make_service(tiny_checkpoint, engine)
    with pytest.raises(kind):
        await complete(service, make_generation_request(n=3))
    assert not engine.running


@pytest.mark.asyncio
async def test_a_failure_stops_the_others_even_if_nobody_reads(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(failing)
    service = make_service(tiny_checkpoint, engine)
    with pytest.raises(EngineError):
        async with await service.start(make_generation_request(n=3)) as stream:
            await until(lambda: len(engine.started) > 1 and not engine.running)
            await stream.result()


@pytest.mark.asyncio
async def test_what_came_before_a_failure_is_delivered_first(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(dying))
    chunks: list[Chunk] = []
    with pytest.raises(EngineUnavailable):
        async with await service.start(make_generation_request()) as stream:
            async for chunk in stream:
                chunks.append(chunk)
    assert [chunk.text for chunk in chunks] == ["0 "]


@pytest.mark.asyncio
async def test_waiting_chunks_are_merged(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    sampling = SamplingParams(max_tokens=50, logprobs=2)
    async with await service.start(make_generation_request(sampling=sampling)) as stream:
        await until(lambda: bool(engine.started) and not engine.running)
        (chunk,) = [chunk async for chunk in stream]
    assert chunk.token_ids == tuple(range(50))
    assert chunk.text == "".join(f"{place} " for place in range(50))
    assert [entry.token_id for entry in chunk.logprobs] == list(range(50))
    assert chunk.finish_reason == "length"


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_cut_off(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(max_model_len=2 * MAX_PENDING)
    service = make_service(tiny_checkpoint, engine)
    num_read = 0
    sampling = SamplingParams(max_tokens=MAX_PENDING + 100)
    with pytest.raises(ClientTooSlow):
        async with await service.start(make_generation_request(sampling=sampling)) as stream:
            await until(lambda: bool(engine.started) and not engine.running)
            async for chunk in stream:
                num_read += len(chunk.token_ids)
    assert num_read == MAX_PENDING
