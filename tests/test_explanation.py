"""Timelines as the service tells them: the front's part, the engine's, and both in one."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from service_builders import (
    ScriptedEngine,
    complete,
    make_generation_request,
    make_output,
    make_service,
)

from omniserve import front_notes
from omniserve.decision import WHOLE_REQUEST, Decision
from omniserve.errors import EngineUnavailable, InvalidRequest, Overloaded, UnknownRequest
from omniserve.front_notes import FrontNotes
from omniserve.requests import EngineRequest, RequestOutput


def decision(at_s: float, event: str) -> Decision:
    return Decision(0, at_s, at_s, 1, event, "", "")


def events(timeline: tuple[Decision, ...]) -> list[str]:
    return [each.event for each in timeline]


@pytest.mark.asyncio
async def test_what_the_front_did_is_told_with_what_the_engine_decided(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    await complete(service, make_generation_request((1, 2, 3), (4, 5), n=2, request_id="mine"))
    received = (await service.explain("mine"))[0]
    engine.timelines["mine"] = (
        decision(received.at_s - 9.0, "of an older one of that name"),
        decision(received.at_s, "queued"),
    )
    timeline = await service.explain("mine")
    assert events(timeline) == ["received", "queued", "tokenised", "first token sent", "ended"]
    assert [each.at_s for each in timeline] == sorted(each.at_s for each in timeline)
    assert {each.sequence for each in timeline if each.event != "queued"} == {WHOLE_REQUEST}
    assert timeline[2].detail == "5 prompt tokens, sequences to generate: 4"
    assert timeline[-1].reason == "ok"


@pytest.mark.parametrize("given", ["mine", "chatcmpl-mine", "cmpl-mine"])
@pytest.mark.asyncio
async def test_the_id_may_be_that_of_an_openai_body(tiny_checkpoint: Path, given: str) -> None:
    service = make_service(tiny_checkpoint)
    await complete(service, make_generation_request(request_id="mine"))
    assert events(await service.explain(given))[0] == "received"


@pytest.mark.asyncio
async def test_of_requests_that_share_an_id_the_newest_is_told(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    with pytest.raises(InvalidRequest):
        await service.start(make_generation_request(request_id="mine", model="", tier="nobody"))
    timeline = await service.explain("mine")
    assert events(timeline) == ["received", "ended"]
    assert timeline[-1].reason == "invalid" and "model: must be given" in timeline[-1].detail
    await complete(service, make_generation_request(request_id="mine"))
    assert (await service.explain("mine"))[-1].reason == "ok"


@pytest.mark.asyncio
async def test_nothing_is_known_of_a_request_that_never_came(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    with pytest.raises(UnknownRequest, match="known of request 'x{128}': .* the log tells"):
        await service.explain("x" * 1000)


@pytest.mark.asyncio
async def test_without_an_engine_the_front_tells_what_it_knows(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    await complete(service, make_generation_request(request_id="mine"))
    engine.ready, engine.state = False, "restarting"
    timeline = await service.explain("mine")
    assert events(timeline)[-2:] == ["ended", "unknown"]
    assert timeline[-1].reason == "the engine cannot tell"
    assert "the engine is restarting" in timeline[-1].detail
    with pytest.raises(EngineUnavailable):
        await service.explain("another")


@pytest.mark.asyncio
async def test_what_ends_a_request_is_told_but_nothing_of_its_text(tiny_checkpoint: Path) -> None:
    async def refusing(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        raise Overloaded("no room; try again in 1.0 s", 1.0)
        yield make_output(request, 0, 1)

    async def broken(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        raise RuntimeError("it was about a secret")
        yield make_output(request, 0, 1)

    engine = ScriptedEngine(refusing)
    service = make_service(tiny_checkpoint, engine)
    with pytest.raises(Overloaded):
        await complete(service, make_generation_request(request_id="refused"))
    last = (await service.explain("refused"))[-1]
    assert (last.event, last.reason, last.detail) == (
        "ended",
        "refused",
        "no room; try again in 1.0 s",
    )
    engine.script = broken
    with pytest.raises(RuntimeError):
        await complete(service, make_generation_request(request_id="broken"))
    last = (await service.explain("broken"))[-1]
    assert (last.event, last.reason, last.detail) == ("ended", "error", "")


@pytest.mark.asyncio
async def test_requests_of_one_name_at_the_same_time_do_not_mix(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    older = await service.start(make_generation_request(request_id="mine"))
    newer = await service.start(make_generation_request(request_id="mine"))
    async with older, newer:
        await asyncio.gather(older.result(), newer.result())
    assert events(await service.explain("mine")).count("received") == 1


def test_the_front_remembers_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_notes, "MAX_REQUESTS", 2)
    notes = FrontNotes()
    for name in ("a", "b", "a", "c"):
        notes.begin(name).add(1.0, "received")
    assert [name for name in "abc" if notes.of(name)] == ["a", "c"]
