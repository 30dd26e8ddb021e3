"""Tiers and tenants over both protocols: refusals, fallbacks, and tiers that change."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import serving
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from http_client import CHAT, COMPLETIONS, ask, check_error, events_of, make_body, make_client
from service_builders import (
    ScriptedEngine,
    complete,
    counting,
    make_generation_request,
    make_output,
    make_service,
    sample,
)

from omniserve.config_tier import TierConfig
from omniserve.errors import ReloadRefused
from omniserve.requests import EngineRequest, RequestOutput, TierRules
from omniserve.settings import ModelStats
from omniserve.v1 import omniserve_pb2 as pb

RETRY_S = 2.3


async def refusing(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    yield RequestOutput(
        request.request_id, "", (), finish_reason="error", error="full", retry_after_s=RETRY_S
    )


async def falling_back(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """The second choice is served by the fallback; or the only one, from its second token on."""
    async for output in counting(request):
        is_sent_on = request.request_id.endswith("#1") or output.num_output_tokens > 1
        yield replace(output, tier="batch" if is_sent_on else "")


def make_request(**fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, max_tokens=3)
    return pb.GenerateRequest(model="demo", text="Hello", sampling=sampling, **fields)


def make_tier(name: str, service_class: str = "best_effort", **fields: object) -> TierConfig:
    if service_class == "latency_sensitive":
        fields = {"ttft_ms": 100, "tpot_ms": 10} | fields
    return TierConfig.model_validate({"name": name, "class": service_class} | fields)


OTHERS = (
    make_tier(
        "voice",
        "latency_sensitive",
        fallback="bulk",
        max_waiting=5,
        demote_after_tokens=9,
    ),
    make_tier("bulk", max_waiting=3),
)


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_429_with_a_hint_also_of_a_stream(
    tiny_checkpoint: Path, path: str, stream: bool
) -> None:
    body = make_body(path, stream=stream, n=2)
    answer = await ask(tiny_checkpoint, path, body, ScriptedEngine(refusing))
    check_error(answer, 429, None, "full")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2300")


@pytest.mark.asyncio
async def test_a_refusal_over_grpc_says_when_to_try_again(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(refusing))
    async with serving(service) as servers:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await servers.inference.Complete(make_request())
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(failed.value)
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToMilliseconds() == 2300
    labels = ('model="demo"', 'tier="interactive"', 'outcome="refused"')
    assert sample(service.metrics, "omniserve_requests_total", labels) == 1


@pytest.mark.asyncio
async def test_grpc_answers_say_which_tier_served(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(falling_back))
    async with serving(service) as servers:
        chunks = [chunk async for chunk in servers.inference.Generate(make_request())]
        assert [chunk.tier for chunk in chunks] == [""] * (len(chunks) - 1) + ["batch"]
        assert (await servers.inference.Complete(make_request())).tier == "batch"
        # It is counted where it was sent to.
        labels = ('model="demo"', 'tier="interactive"', 'outcome="ok"')
        assert sample(service.metrics, "omniserve_requests_total", labels) == 2


@pytest.mark.asyncio
async def test_a_request_of_one_token_stays_where_it_was_sent(tiny_checkpoint: Path) -> None:
    request = make_request()
    request.sampling.max_tokens = 1
    async with serving(make_service(tiny_checkpoint, ScriptedEngine(falling_back))) as servers:
        assert (await servers.inference.Complete(request)).tier == "interactive"
        request.sampling.n = 2
        assert (await servers.inference.Complete(request)).tier == "batch"


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_http_answers_say_which_tier_served(tiny_checkpoint: Path, path: str) -> None:
    engine = ScriptedEngine(falling_back)
    whole = await ask(tiny_checkpoint, path, make_body(path), engine)
    assert whole.json()["service_tier"] == "batch"
    options = {"include_usage": True}
    body = make_body(path, stream=True, stream_options=options, n=2)
    *_, last = events_of((await ask(tiny_checkpoint, path, body, engine)).text)
    assert last["service_tier"] == "batch"


async def changing_slowly(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    for place in range(2):
        yield replace(make_output(request, place, 2), tier="batch" if place else "")


@pytest.mark.asyncio
async def test_merged_outputs_keep_the_tier_of_the_last(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(changing_slowly))
    async with await service.start(make_generation_request()) as stream:
        assert stream.tier == "interactive"
        (chunk,) = [chunk async for chunk in stream]
        assert (chunk.token_ids, chunk.tier, stream.tier) == ((0, 1), "batch", "batch")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("in_message", "in_metadata", "expected"),
    [("", None, ""), ("", "acme", "acme"), ("umbrella", "acme", "umbrella")],
)
async def test_the_tenant_reaches_the_engine_over_grpc(
    tiny_checkpoint: Path, in_message: str, in_metadata: str | None, expected: str
) -> None:
    engine = ScriptedEngine()
    metadata = (("x-omniserve-tenant", in_metadata),) if in_metadata else ()
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        await servers.inference.Complete(make_request(tenant=in_message), metadata=metadata)
    assert [sequence.tenant for sequence in engine.started] == [expected]


@pytest.mark.asyncio
async def test_the_tenant_reaches_the_engine_over_http(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    async with (
        serving(make_service(tiny_checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        # `user` is about end users, who share their tenant's part.
        body = make_body(CHAT, user="somebody")
        for headers in ({"x-omniserve-tenant": "acme"}, {}):
            assert (await http.post(CHAT, json=body, headers=headers)).status_code == 200
        answer = await http.post(CHAT, json=body, headers={"x-omniserve-tenant": "x" * 65})
        check_error(answer, 400, "tenant", "up to 64 printable characters")
    assert [sequence.tenant for sequence in engine.started] == ["acme", ""]


@pytest.mark.asyncio
@pytest.mark.parametrize("tenant", ["x" * 65, "a\nb"])
async def test_wrong_tenants_are_refused(tiny_checkpoint: Path, tenant: str) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        with pytest.raises(grpc.aio.AioRpcError, match="tenant: not allowed") as failed:
            await servers.inference.Complete(make_request(tenant=tenant))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
async def test_rules_reach_the_engine_with_each_request(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    await complete(service, make_generation_request())
    service.set_served(OTHERS, service.models)
    await complete(service, make_generation_request())
    before, after = engine.started
    assert (before.tier, before.rules) == ("interactive", TierRules())
    assert (after.tier, after.service_class) == ("voice", "latency_sensitive")
    assert after.objectives is not None and after.objectives.ttft_s == 0.1
    assert after.rules == TierRules(True, "bulk", 5, 9, fallback_max_waiting=3)


@pytest.mark.asyncio
async def test_tiers_and_their_rules_are_listed_and_change(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    async with serving(service) as servers:
        listed = await servers.inference.ListModels(pb.ListModelsRequest())
        assert [tier.name for tier in listed.tiers] == ["interactive", "voice", "batch"]
        assert [tier.admission for tier in listed.tiers] == [True, True, False]
        service.set_served(OTHERS, service.models)
        listed = await servers.inference.ListModels(pb.ListModelsRequest())
        assert listed.models[0].default_tier == "voice"
        voice, bulk = listed.tiers
        assert (voice.fallback, voice.max_waiting, voice.demote_after_tokens) == ("bulk", 5, 9)
        assert (bulk.fallback, bulk.max_waiting) == ("", 3)
        assert not bulk.HasField("demote_after_tokens")
        with pytest.raises(grpc.aio.AioRpcError, match="'interactive' is not served"):
            await servers.inference.Complete(make_request(tier="interactive"))


@pytest.mark.asyncio
async def test_tiers_that_cannot_be_taken_change_nothing(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, default_tier="batch")
    before = service.tiers
    with pytest.raises(ReloadRefused):
        service.set_served(OTHERS, service.models)
    assert service.tiers is before


def test_new_tiers_have_their_series_at_once_and_old_ones_stay(tiny_checkpoint: Path) -> None:
    stats = ModelStats("demo", {}, {}, 0, 0, 0, 0, 0, 0.0)
    service = make_service(tiny_checkpoint, ScriptedEngine(stats={"demo": stats}))
    service.set_served(OTHERS, service.models)
    for tier in ("bulk", "voice", "interactive"):
        labels = ('model="demo"', f'tier="{tier}"')
        assert sample(service.metrics, "omniserve_running_requests", labels) == 0
        assert sample(service.metrics, "omniserve_e2e_seconds_count", labels) == 0
