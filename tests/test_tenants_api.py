"""Tenants over both protocols: who is let in, to what, and how much of it."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import Servers, serving
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from http_client import CHAT, COMPLETIONS, check_error, make_body, make_client
from service_builders import (
    Script,
    ScriptedEngine,
    make_generation_request,
    make_output,
    sample,
    silent,
    until,
)
from tenant_builders import bearer, make_tenant, make_tenanted_service, token_of

from omniserve.access.quotas import TenantStatus
from omniserve.config_listen import LimitsConfig
from omniserve.errors import EngineError
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.v1 import omniserve_pb2 as pb

CODES = grpc.StatusCode
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["Inference"].methods]
ROUTES = [
    ("POST", COMPLETIONS),
    ("POST", CHAT),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/demo"),
    ("GET", "/not-there"),
    ("GET", "/metrics"),
]
WRONG: list[dict[str, str]] = [
    {},
    {"authorization": "Bearer"},
    {"authorization": f"Basic {token_of('acme')}"},
    {"authorization": f"Bearer {token_of('stranger')}"},
    {"x-api-key": token_of("acme")},
]


def make_request(**fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, max_tokens=3)
    given: dict[str, Any] = {"model": "demo", "text": "Hello", "sampling": sampling}
    return pb.GenerateRequest(**(given | fields))


def metadata(caller: str, **others: str) -> tuple[tuple[str, str], ...]:
    return (
        *bearer(caller).items(),
        *((f"x-omniserve-{key}", each) for key, each in others.items()),
    )


async def complete(servers: Servers, caller: str, **fields: Any) -> pb.GenerateResult:
    request = make_request(**fields)
    result: pb.GenerateResult = await servers.inference.Complete(request, metadata=metadata(caller))
    return result


async def grpc_error(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert any(detail.Unpack(retry) for detail in status.details)
    return float(retry.retry_delay.ToTimedelta().total_seconds())


@pytest.mark.asyncio
@pytest.mark.parametrize("headers", WRONG)
async def test_strangers_are_let_into_nothing(
    tiny_checkpoint: Path, headers: dict[str, str]
) -> None:
    engine = ScriptedEngine()
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"), engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        for name in METHODS:
            # Not even parsed: what they send is no message at all.
            method = f"/omniserve.v1.Inference/{name}"
            call: Callable[..., Any] = (
                servers.channel.unary_stream if name == "Generate" else servers.channel.unary_unary
            )
            running = call(method)(b"\xff\xff", metadata=tuple(headers.items()))
            error = await grpc_error(running.read() if name == "Generate" else running)
            assert error.code() is CODES.UNAUTHENTICATED, name
        for verb, path in ROUTES:
            answer = await http.request(verb, path, content=b"{", headers=headers)
            check_error(answer, 401, None, "token" if "auth" not in str(headers) else "")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert not engine.started


@pytest.mark.asyncio
async def test_health_needs_no_token(tiny_checkpoint: Path) -> None:
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    async with serving(service) as servers, make_client(servers.url) as http:
        assert (await http.get("/health")).status_code == 200
        stub = health_pb2_grpc.HealthStub(servers.channel)
        await stub.Check(health_pb2.HealthCheckRequest())


@pytest.mark.asyncio
async def test_the_token_says_whose_request_it_is(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    tenants = (make_tenant("acme", num_tokens=2), make_tenant("other"))
    service = make_tenanted_service(tiny_checkpoint, *tenants, engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        await complete(servers, "acme")
        await complete(servers, "other", tenant="other")
        chunks = servers.inference.Generate(make_request(), metadata=metadata("acme"))
        assert [token async for chunk in chunks for token in chunk.token_ids] == [0, 1, 2]
        for path in (COMPLETIONS, CHAT):
            answer = await http.post(path, json=make_body(path), headers=bearer("acme", 1))
            assert answer.status_code == 200
    assert [each.tenant for each in engine.started] == ["acme", "other", "acme", "acme", "acme"]


@pytest.mark.asyncio
async def test_nobody_may_claim_to_be_another(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    tenants = (make_tenant("acme"), make_tenant("other"))
    service = make_tenanted_service(tiny_checkpoint, *tenants, engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        error = await grpc_error(complete(servers, "acme", tenant="other"))
        assert error.code() is CODES.PERMISSION_DENIED
        call = servers.inference.Complete(
            make_request(), metadata=metadata("acme", tenant="x" * 1000)
        )
        assert (await grpc_error(call)).code() is CODES.PERMISSION_DENIED
        headers = bearer("acme") | {"x-omniserve-tenant": "other"}
        answer = await http.post(CHAT, json=make_body(CHAT), headers=headers)
        check_error(answer, 403, None, "'other' is not the tenant of the token")
    assert not engine.started


@pytest.mark.asyncio
async def test_tiers_that_are_not_the_tenants_are_refused_and_not_shown(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine()
    tenants = (make_tenant("cheap", tiers=["batch"]), make_tenant("acme", tiers=["voice", "batch"]))
    service = make_tenanted_service(tiny_checkpoint, *tenants, engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        error = await grpc_error(complete(servers, "cheap", tier="voice"))
        assert error.code() is CODES.PERMISSION_DENIED
        assert "tier: 'voice' is not for tenant 'cheap'; allowed: batch, auto" in str(
            error.details()
        )
        error = await grpc_error(complete(servers, "cheap", tier="priority"))
        assert error.code() is CODES.INVALID_ARGUMENT
        body = make_body(CHAT, service_tier="interactive")
        answer = await http.post(CHAT, json=body, headers=bearer("acme"))
        check_error(answer, 403, None, "'interactive' is not for tenant 'acme'")
        # Who may not use the model's default has the first of its own.
        assert (await complete(servers, "cheap")).tier == "batch"
        assert (await complete(servers, "acme", tier="auto")).tier == "voice"
        assert (await complete(servers, "acme", tier="priority")).tier == "voice"
        listed = await servers.inference.ListModels(
            pb.ListModelsRequest(), metadata=metadata("cheap")
        )
    assert [tier.name for tier in listed.tiers] == ["batch"]
    assert listed.models[0].default_tier == "batch"
    assert (
        sample(
            service.metrics,
            "omniserve_requests_total",
            ('model="demo"', 'tier=""', 'outcome="denied"'),
        )
        == 2
    )


@pytest.mark.asyncio
async def test_models_that_are_not_the_tenants_are_refused_and_not_shown(
    tiny_checkpoint: Path,
) -> None:
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme", models=["other"]))
    async with serving(service) as servers, make_client(servers.url) as http:
        stub, known = servers.inference, metadata("acme")
        calls = (
            complete(servers, "acme"),
            stub.Tokenize(pb.TokenizeRequest(model="demo", text="Hello"), metadata=known),
            stub.Detokenize(pb.DetokenizeRequest(model="demo", token_ids=[1]), metadata=known),
        )
        for call in calls:
            error = await grpc_error(call)
            assert error.code() is CODES.PERMISSION_DENIED
            assert "'demo' is not for tenant 'acme'" in str(error.details())
        listed = await stub.ListModels(pb.ListModelsRequest(), metadata=known)
        assert not listed.models
        headers = bearer("acme")
        assert (await http.get("/v1/models", headers=headers)).json()["data"] == []
        answer = await http.get("/v1/models/demo", headers=headers)
        check_error(answer, 403, None, "'demo' is not for tenant 'acme'")
        answer = await http.post(CHAT, json=make_body(CHAT), headers=headers)
        check_error(answer, 403, None, "'demo' is not for tenant 'acme'")


@asynccontextmanager
async def one_running(servers: Servers, engine: ScriptedEngine, tenant: str) -> AsyncIterator[None]:
    num_before = len(engine.running)
    call = servers.inference.Generate(make_request(), metadata=metadata(tenant))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: len(engine.running) > num_before)
    yield
    call.cancel()
    reading.cancel()
    await until(lambda: len(engine.running) == num_before)


@pytest.mark.asyncio
async def test_who_has_too_much_is_refused_with_a_time_and_others_are_not(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine(silent)
    tenants = (make_tenant("acme", quota={"concurrent": 1}), make_tenant("other"))
    service = make_tenanted_service(tiny_checkpoint, *tenants, engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        async with one_running(servers, engine, "acme"):
            error = await grpc_error(complete(servers, "acme", request_id="too much"))
            assert error.code() is CODES.RESOURCE_EXHAUSTED
            assert 0 < retry_delay_s(error) <= 10
            answer = await http.post(CHAT, json=make_body(CHAT), headers=bearer("acme"))
            check_error(answer, 429, None, "'acme' has 1 of 1 requests here at the same time")
            assert 0 < int(answer.headers["retry-after-ms"]) <= 10_000
            async with one_running(servers, engine, "other"):
                assert len(engine.running) == 2
            (status, _) = service.access.quotas.tenants_status()
            assert (status.num_concurrent, status.num_queued, status.num_refused) == (1, 1, 2)
        assert service.access.quotas.tenants_status()[0].num_concurrent == 0
    entries = [(each.event, each.reason) for each in await service.explain("too much")]
    assert entries == [("received", ""), ("quota", "concurrent"), ("ended", "over_quota")]
    labels = ('tenant="acme"', 'quota="concurrent"')
    assert sample(service.metrics, "omniserve_tenant_refusals_total", labels) == 2
    assert sample(service.metrics, "omniserve_tenant_requests_total", ('tenant="acme"',)) == 3


async def second_ends_without_a_token(
    request: EngineRequest,
) -> AsyncGenerator[RequestOutput, None]:
    if request.request_id.endswith("#1"):
        ended = make_output(request, 0, 1, text="")
        yield replace(ended, token_ids=(), finish_reason="stop", num_output_tokens=0)
    else:
        await asyncio.Event().wait()
    yield make_output(request, 0, 1)


async def second_fails(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    if request.request_id.endswith("#1"):
        raise EngineError("out of luck")
    await asyncio.Event().wait()
    yield make_output(request, 0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "num_queued"), [(second_ends_without_a_token, 2), (second_fails, 0)]
)
async def test_what_will_have_no_token_waits_for_none(
    tiny_checkpoint: Path, script: Script, num_queued: int
) -> None:
    """At once, however late the client takes notice."""
    engine = ScriptedEngine(script)
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"), engine=engine)
    caller = service.access.caller([bearer("acme")["authorization"]])
    request = replace(make_generation_request(n=3), caller=caller)

    def status() -> TenantStatus:
        return service.access.quotas.tenants_status()[0]

    async with await service.start(request):
        assert (status().num_concurrent, status().num_queued) == (3, 3)
        await until(lambda: status().num_queued == num_queued)
        assert status().num_concurrent == 3
    assert (status().num_concurrent, status().num_queued) == (0, 0)


@pytest.mark.asyncio
async def test_tokens_are_charged_and_shown(tiny_checkpoint: Path) -> None:
    quota = {"input_tokens_per_minute": 1000, "output_tokens_per_minute": 5}
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme", quota=quota))
    async with serving(service) as servers:
        ids = pb.TokenIds(ids=range(1, 101))
        sampling = pb.Sampling(max_tokens=8)
        await complete(servers, "acme", text=None, token_ids=ids, sampling=sampling, request_id="a")
        # Eight of five: nothing is left for the next, for more than half a minute.
        error = await grpc_error(complete(servers, "acme"))
    assert error.code() is CODES.RESOURCE_EXHAUSTED
    assert "used up all of its 5 output tokens a minute" in str(error.details())
    assert 30 < retry_delay_s(error) <= 48
    for kind, number in (("input", 100), ("output", 8)):
        labels = ('tenant="acme"', f'kind="{kind}"')
        assert sample(service.metrics, "omniserve_tenant_tokens_total", labels) == number
    labels = ('tenant="acme"', 'quota="output_tokens"')
    assert sample(service.metrics, "omniserve_tenant_quota_used_ratio", labels) == 1
    (charged,) = [each for each in await service.explain("a") if each.event == "quota"]
    assert charged.detail.startswith("tenant 'acme' now has 1 concurrent, 1 queued, 10% of 1000")


@pytest.mark.asyncio
async def test_a_request_that_is_refused_later_costs_nothing(tiny_checkpoint: Path) -> None:
    quota = {"concurrent": 2, "input_tokens_per_minute": 50}
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme", quota=quota))
    async with serving(service) as servers:
        ids = pb.TokenIds(ids=range(1, 21))
        for fields, code in (
            ({"sampling": pb.Sampling(max_tokens=10_000)}, CODES.INVALID_ARGUMENT),
            ({"sampling": pb.Sampling(n=3)}, CODES.INVALID_ARGUMENT),
            ({"token_ids": pb.TokenIds(ids=range(1, 52))}, CODES.INVALID_ARGUMENT),
            ({"token_ids": pb.TokenIds(ids=[10**6])}, CODES.INVALID_ARGUMENT),
        ):
            request = {"text": None, "token_ids": ids} | fields
            error = await grpc_error(complete(servers, "acme", **request))
            assert error.code() is code, error.details()
            (status,) = service.access.quotas.tenants_status()
            assert (status.num_concurrent, status.num_queued) == (0, 0)
            assert status.input_tokens_share == 0


@pytest.mark.asyncio
async def test_tokens_of_clients_are_never_told(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    told = []
    async with serving(service) as servers, make_client(servers.url) as http:
        for tenant in ("acme", "stranger"):
            for headers in (bearer(tenant), {"authorization": token_of(tenant)}):
                misplaced = headers | {"x-request-id": f"my {token_of(tenant)}"}
                answer = await http.post(CHAT, json=make_body(CHAT), headers=misplaced)
                told.append(f"{answer.headers}{answer.text}")
                request = make_request(request_id=token_of(tenant))
                call = servers.inference.Complete(request, metadata=tuple(headers.items()))
                try:
                    told.append(str(await call))
                except grpc.aio.AioRpcError as error:
                    told.append(repr(error))
    told += [str(vars(record)) for record in caplog.records if record.name.startswith("omniserve")]
    assert len(told) >= 16
    assert not [each for each in told if re.search("omni_[a-z]", each)]


@pytest.mark.asyncio
async def test_without_tenants_a_key_means_nothing(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_tenanted_service(tiny_checkpoint, engine=engine)
    async with serving(service) as servers, make_client(servers.url) as http:
        headers = bearer("nobody") | {"x-omniserve-tenant": "claimed"}
        assert (await http.post(CHAT, json=make_body(CHAT), headers=headers)).status_code == 200
    assert [each.tenant for each in engine.started] == ["claimed"]
    lines = service.metrics.exposition().splitlines()
    assert not [line for line in lines if line.startswith(b"omniserve_tenant_")]


@pytest.mark.asyncio
async def test_lengths_are_limited_for_everyone(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    limits = LimitsConfig(max_prompt_tokens=10, max_output_tokens=4)
    service = make_tenanted_service(tiny_checkpoint, engine=engine, limits=limits)
    async with serving(service) as servers, make_client(servers.url) as http:
        body = make_body(COMPLETIONS, prompt=list(range(1, 12)))
        answer = await http.post(COMPLETIONS, json=body)
        check_error(answer, 400, "prompt", "11 tokens are more than this server takes")
        answer = await http.post(CHAT, json=make_body(CHAT, max_tokens=5))
        check_error(answer, 400, "messages", "tokens are more than this server takes")
        answer = await http.post(COMPLETIONS, json=make_body(COMPLETIONS, max_tokens=5))
        check_error(answer, 400, "max_tokens", "5 tokens of output are more than this server gives")
        answer = await http.post(COMPLETIONS, json=make_body(COMPLETIONS, max_tokens=None))
        assert answer.json()["usage"]["completion_tokens"] == 4
        sampling = pb.Sampling()
        result = await servers.inference.Complete(make_request(sampling=sampling))
        assert result.usage.output_tokens == 4
