"""Who needs no token, or says nothing, keeps no tenant out."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import Servers, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_builders import ScriptedEngine, silent, until
from tenant_builders import bearer, make_tenant, make_tenanted_service

from omniserve.api import grpc_places
from omniserve.config_listen import LimitsConfig
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb

MAX_REQUESTS = 2
CODES = grpc.StatusCode
TOKEN = tuple(bearer("acme").items())
GENERATE = "/omniserve.v1.Inference/Generate"
WANTED = pb.GenerateRequest(model="demo", text="once")


def make_service(checkpoint: Path, engine: ScriptedEngine | None = None) -> GenerationService:
    limits = LimitsConfig(max_requests=MAX_REQUESTS)
    return make_tenanted_service(checkpoint, make_tenant("acme"), engine=engine, limits=limits)


async def models(servers: Servers) -> grpc.StatusCode:
    """How a tenant's call ends."""
    try:
        await servers.inference.ListModels(pb.ListModelsRequest(), metadata=TOKEN)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return CODES.OK


def silent_call(channel: grpc.aio.Channel, **options: Any) -> Any:
    """Begins, and sends no message."""
    return channel.stream_stream(GENERATE)(**options)


@pytest.mark.asyncio
async def test_watchers_of_health_keep_no_tenant_out(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_places, "MAX_OPEN_CALLS", 3)
    async with serving(make_service(tiny_checkpoint)) as servers:
        health = health_pb2_grpc.HealthStub(servers.channel)
        watchers = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for each in watchers:
            await each.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest())
        assert refused.value.code() is CODES.RESOURCE_EXHAUSTED
        assert await models(servers) is CODES.OK
        watchers[0].cancel()
        async with asyncio.timeout(20):
            while await status_of_health(health) is not CODES.OK:
                await asyncio.sleep(0.01)


async def status_of_health(health: health_pb2_grpc.HealthStub) -> grpc.StatusCode:
    try:
        await health.Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError as error:
        return error.code()
    return CODES.OK


@pytest.mark.asyncio
async def test_a_stranger_is_refused_before_it_has_said_anything(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        for _ in range(MAX_REQUESTS + 1):
            call = silent_call(servers.channel)
            async with asyncio.timeout(20):
                assert await call.code() is CODES.UNAUTHENTICATED
        assert await models(servers) is CODES.OK


@pytest.mark.asyncio
async def test_a_call_whose_message_does_not_come_is_ended(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_places.PlaceInterceptor.__init__, "__defaults__", (0.3,))
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        calls = [silent_call(servers.channel, metadata=TOKEN) for _ in range(MAX_REQUESTS)]
        async with asyncio.timeout(20):
            assert {await each.code() for each in calls} == {CODES.DEADLINE_EXCEEDED}
            empty = silent_call(servers.channel, metadata=TOKEN)
            await empty.done_writing()
            assert await empty.code() is CODES.INVALID_ARGUMENT
        assert await models(servers) is CODES.OK
        # Once it is there the call may take as long as it takes.
        running = servers.inference.Generate(WANTED, metadata=TOKEN)
        await until(lambda: bool(engine.running))
        await asyncio.sleep(0.6)
        assert engine.running and not running.done()
        running.cancel()


@pytest.mark.asyncio
async def test_no_more_calls_than_allowed(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        generate = servers.inference.Generate
        calls = [generate(WANTED, metadata=TOKEN) for _ in range(MAX_REQUESTS)]
        await until(lambda: len(engine.running) == MAX_REQUESTS)
        assert await models(servers) is CODES.RESOURCE_EXHAUSTED
        for each in calls:
            each.cancel()
        async with asyncio.timeout(20):
            while await models(servers) is not CODES.OK:
                await asyncio.sleep(0.01)
