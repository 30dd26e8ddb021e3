"""Who needs no token, or says nothing, keeps no tenant out."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import Servers, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_builders import ScriptedEngine, sample, silent, until
from tenant_builders import bearer, make_tenant, make_tenanted_service

from omniserve.api import grpc_places
from omniserve.api.grpc_access import AccessInterceptor
from omniserve.api.grpc_calls import CallInterceptor
from omniserve.api.grpc_errors import ErrorInterceptor
from omniserve.api.grpc_inference import InferenceServicer
from omniserve.api.grpc_listener import GrpcListener
from omniserve.calls.call_log import STRANGERS_BURST
from omniserve.commands.call_errors import error_of_call
from omniserve.commands.exit_status import EXIT_UNAVAILABLE, exit_status_of
from omniserve.config_listen import LimitsConfig
from omniserve.errors import OmniServeError, Overloaded
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

MAX_REQUESTS = 2
"""Of one tenant; the server has twice as many places."""
SHORT_S, LONG_S = 0.3, 3.0
"""What messages are waited for: of those who send none, and of those who do on a slow machine."""
CODES = grpc.StatusCode
Token = tuple[tuple[str, str], ...]
TOKEN, OTHER = (tuple(bearer(tenant).items()) for tenant in ("acme", "other"))
GENERATE = "/omniserve.v1.Inference/Generate"
WANTED = pb.GenerateRequest(model="demo", text="once")


def make_service(checkpoint: Path, engine: ScriptedEngine | None = None) -> GenerationService:
    limits = LimitsConfig(max_requests=2 * MAX_REQUESTS)
    return make_tenanted_service(
        checkpoint, make_tenant("acme"), make_tenant("other"), engine=engine, limits=limits
    )


async def models(servers: Servers, token: Token = TOKEN) -> grpc.StatusCode:
    """How a tenant's call ends."""
    try:
        await servers.inference.ListModels(pb.ListModelsRequest(), metadata=token)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return CODES.OK


def num_refused(service: GenerationService, reason: str) -> float:
    return sample(service.metrics, "omniserve_refusals_total", (f'reason="{reason}"',))


def num_calls(service: GenerationService, method: str, status: str) -> float:
    labels = ('protocol="grpc"', f'method="{method}"', f'status="{status}"')
    return sample(service.metrics, "omniserve_calls_total", labels)


def error_of_command(address: str) -> OmniServeError:
    """What a command makes of its refusal."""
    with grpc.insecure_channel(address) as channel:
        inference = omniserve_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            inference.ListModels(pb.ListModelsRequest(), metadata=TOKEN)
    return error_of_call(failed.value, address)


def silent_call(channel: grpc.aio.Channel, **options: Any) -> Any:
    """Begins, and sends no message."""
    return channel.stream_stream(GENERATE)(**options)


@pytest.mark.asyncio
async def test_watchers_of_health_keep_out_no_tenant_and_no_check(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_places, "MAX_OPEN_CALLS", 3)
    async with serving(make_service(tiny_checkpoint)) as servers:
        health = health_pb2_grpc.HealthStub(servers.channel)
        watchers = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for each in watchers:
            await each.read()
        refused = health.Watch(health_pb2.HealthCheckRequest())
        assert await refused.code() is CODES.RESOURCE_EXHAUSTED
        # It answers, whatever it says: nobody told this server that it serves.
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
        assert await models(servers) is CODES.OK
        watchers[0].cancel()
        async with asyncio.timeout(60):
            while not await can_watch(health):
                await asyncio.sleep(0.01)


async def can_watch(health: health_pb2_grpc.HealthStub) -> bool:
    watcher = health.Watch(health_pb2.HealthCheckRequest())
    try:
        return await watcher.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        return False
    finally:
        watcher.cancel()


@pytest.mark.asyncio
async def test_a_stranger_is_refused_before_it_has_said_anything(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        for _ in range(MAX_REQUESTS + 1):
            call = silent_call(servers.channel)
            async with asyncio.timeout(60):
                assert await call.code() is CODES.UNAUTHENTICATED
        assert await models(servers) is CODES.OK


@asynccontextmanager
async def impatient(
    service: GenerationService, message_s: float
) -> AsyncIterator[grpc.aio.Channel]:
    """To a server that waits for messages no longer than that."""
    listener = GrpcListener(
        (),
        service.config.limits,
        interceptors=[
            CallInterceptor(service.calls),
            ErrorInterceptor(),
            AccessInterceptor(service.access),
        ],
        max_calls=2 * MAX_REQUESTS,
        message_s=message_s,
    )
    servicer = InferenceServicer(service)
    omniserve_pb2_grpc.add_InferenceServicer_to_server(servicer, listener.server)
    port = await listener.start(lambda server: server.add_insecure_port("127.0.0.1:0"))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await listener.stop(0)


@pytest.mark.asyncio
async def test_a_call_whose_message_does_not_come_is_ended(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    service = make_service(tiny_checkpoint, engine)
    async with impatient(service, SHORT_S) as channel, asyncio.timeout(60):
        calls = [silent_call(channel, metadata=TOKEN) for _ in range(MAX_REQUESTS)]
        assert {await each.code() for each in calls} == {CODES.DEADLINE_EXCEEDED}
    async with impatient(service, LONG_S) as channel:
        inference = omniserve_pb2_grpc.InferenceStub(channel)
        async with asyncio.timeout(60):
            empty = silent_call(channel, metadata=TOKEN)
            await empty.done_writing()
            assert await empty.code() is CODES.INVALID_ARGUMENT
        assert (await inference.ListModels(pb.ListModelsRequest(), metadata=TOKEN)).models
        # Once it is there the call may take as long as it takes.
        running = inference.Generate(WANTED, metadata=TOKEN)
        await until(lambda: bool(engine.running))
        await asyncio.sleep(1.2 * LONG_S)
        assert engine.running and not running.done()
        running.cancel()
    assert num_refused(service, "deadline") == MAX_REQUESTS
    assert num_refused(service, "invalid") == 1
    assert num_calls(service, "Inference.Generate", "DEADLINE_EXCEEDED") == MAX_REQUESTS


@pytest.mark.asyncio
async def test_no_more_calls_than_allowed(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        generate = servers.inference.Generate
        calls = [generate(WANTED, metadata=TOKEN) for _ in range(MAX_REQUESTS)]
        await until(lambda: len(engine.running) == MAX_REQUESTS)
        assert await models(servers) is CODES.RESOURCE_EXHAUSTED
        assert await models(servers, OTHER) is CODES.OK
        # It is not waited for what a stranger would say, and nobody else is refused in its place.
        async with asyncio.timeout(60):
            assert await silent_call(servers.channel).code() is CODES.UNAUTHENTICATED
        for each in calls:
            each.cancel()
        async with asyncio.timeout(60):
            while await models(servers) is not CODES.OK:
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_refusals_for_want_of_a_place_are_told_counted_and_not_all_logged(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "omniserve")
    engine, num_refusals = ScriptedEngine(silent), 5 * STRANGERS_BURST
    service = make_service(tiny_checkpoint, engine)
    async with serving(service) as servers:
        generate = servers.inference.Generate
        calls = [generate(WANTED, metadata=TOKEN) for _ in range(MAX_REQUESTS)]
        await until(lambda: len(engine.running) == MAX_REQUESTS)
        for _ in range(num_refusals):
            # Whether or not they say anything.
            refused = silent_call(servers.channel, metadata=TOKEN)
            assert await refused.code() is CODES.RESOURCE_EXHAUSTED
        error = await asyncio.to_thread(error_of_command, servers.grpc.address)
        lines = [vars(each)["omniserve_fields"] for each in caplog.records]
        for each in calls:
            each.cancel()
    assert {(each["tenant"], each["reason"], each["outcome"]) for each in lines} == {
        ("acme", "overloaded", "refused")
    }
    assert STRANGERS_BURST <= len(lines) < num_refusals
    assert num_calls(service, "Inference.Generate", "RESOURCE_EXHAUSTED") == num_refusals
    assert num_refused(service, "overloaded") == num_refusals + 1
    assert isinstance(error, Overloaded) and error.retry_after_s == 1
    assert str(error) == ("2 requests of tenant 'acme' are being answered; no more are taken")
    assert exit_status_of(error) == EXIT_UNAVAILABLE
