"""The gRPC server over real sockets and a scripted engine: its contract."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import serving
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from service_builders import (
    ScriptedEngine,
    half_piggybacked,
    make_output,
    make_piggyback_stats,
    make_service,
    silent,
    until,
)

from omniserve import __version__
from omniserve.api.grpc_server import SERVICES, GrpcServer
from omniserve.config_listen import LimitsConfig
from omniserve.errors import ConfigError
from omniserve.output_buffer import MAX_PENDING
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelStats
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc


def make_request(text: str = "Hello", *, tier: str = "", **sampling: Any) -> pb.GenerateRequest:
    sampling = {"temperature": 0.0, "max_tokens": 8} | sampling
    return pb.GenerateRequest(model="demo", text=text, tier=tier, sampling=pb.Sampling(**sampling))


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return failed.value


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The rich error details by the name of their type."""
    status = rpc_status.from_call(error)
    found = {}
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
        for detail in status.details:
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_", "code", "reason", "param"),
    [
        (
            pb.GenerateRequest(model="gone", text="x"),
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_MODEL",
            None,
        ),
        (make_request(tier="gold"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "tier"),
        (make_request(""), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "prompt"),
        (
            pb.GenerateRequest(model="demo"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
            "prompt",
        ),
        (
            make_request(temperature=float("nan")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
            "temperature",
        ),
        (make_request(n=0), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "n"),
        (
            make_request(max_tokens=10_000),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
            "max_tokens",
        ),
    ],
)
async def test_refusals_have_status_and_details(
    tiny_checkpoint: Path,
    request_: pb.GenerateRequest,
    code: grpc.StatusCode,
    reason: str,
    param: str | None,
) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        for method in (servers.inference.Generate, servers.inference.Complete):
            error = await failure_of(method(request_))
            assert error.code() is code
            info = details_of(error)["ErrorInfo"]
            assert (info.reason, info.domain) == (reason, "omniserve")
            assert info.metadata.get("param") == (param or None)


@pytest.mark.asyncio
async def test_no_engine_is_unavailable_and_retryable(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(ready=False, state="restarting")
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        error = await failure_of(servers.inference.Complete(make_request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(error)["RetryInfo"].retry_delay.seconds == 1
        assert (await servers.admin.GetStatus(pb.GetStatusRequest())).state == "restarting"


@pytest.mark.asyncio
async def test_malformed_and_oversized_messages_are_refused(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        send_raw: Any = servers.channel.unary_unary("/omniserve.v1.Inference/Complete")
        error = await failure_of(send_raw(b"\xff\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await failure_of(send_raw(b"\0" * (LimitsConfig().max_message_bytes + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        send_unknown: Any = servers.channel.unary_unary("/omniserve.v1.Inference/Nope")
        error = await failure_of(send_unknown(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await servers.inference.Complete(make_request())).choices


async def exploding(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    yield make_output(request, 0, 2)
    raise ZeroDivisionError("private detail")


@pytest.mark.asyncio
async def test_the_unexpected_is_internal_and_says_nothing(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_service(tiny_checkpoint, ScriptedEngine(exploding))) as servers:
        error = await failure_of(servers.inference.Generate(make_request()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "private" not in str(error.details())
    assert [record.message for record in caplog.records].count("grpc_call_failed") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["Generate", "Complete"])
async def test_deadline_and_cancellation_reach_the_engine(
    tiny_checkpoint: Path, method: str
) -> None:
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        call = getattr(servers.inference, method)
        for timeout_s in (0.3, 3.0, 30.0):
            error = await failure_of(call(make_request(n=2), timeout=timeout_s))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # On a slow machine a short one may have passed before the engine was asked.
            if len(engine.started) >= 2:
                break
        await until(lambda: len(engine.started) >= 2 and not engine.running)
        running = call(make_request())
        waiting = asyncio.ensure_future(failure_of(running))
        await until(lambda: len(engine.running) == 1)
        running.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: not engine.running)


@pytest.mark.asyncio
async def test_a_vanished_client_frees_the_engine(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(silent)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        async with grpc.aio.insecure_channel(servers.grpc.address) as channel:
            stub = omniserve_pb2_grpc.InferenceStub(channel)
            call = stub.Generate(make_request())
            await until(lambda: len(engine.running) == 1)
        await until(lambda: not engine.running)
        assert call.done()


async def flood(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    """Long texts as fast as they can be made."""
    num_tokens = request.sampling.max_tokens or 1
    for place in range(num_tokens):
        await asyncio.sleep(0)
        yield make_output(request, place, num_tokens, text="x" * 1000)


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_cut_off(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(flood, max_model_len=4 * MAX_PENDING)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        call = servers.inference.Generate(make_request(max_tokens=3 * MAX_PENDING))
        chunks = aiter(call)
        await anext(chunks)
        await until(lambda: not engine.running)
        error = await failure_of(chunks)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "unread" in str(error.details())


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("in_message", "in_metadata", "expected"),
    [("", None, "interactive"), ("", "batch", "batch"), ("voice", "batch", "voice")],
)
async def test_tier_in_the_message_wins_over_metadata(
    tiny_checkpoint: Path, in_message: str, in_metadata: str | None, expected: str
) -> None:
    metadata = (("x-omniserve-tier", in_metadata),) if in_metadata else ()
    async with serving(make_service(tiny_checkpoint)) as servers:
        result = await servers.inference.Complete(make_request(tier=in_message), metadata=metadata)
        assert result.tier == expected
        error = await failure_of(
            servers.inference.Complete(make_request(), metadata=(("x-omniserve-tier", "gold"),))
        )
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
async def test_health_follows_the_engine(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    kinds = health_pb2.HealthCheckResponse
    async with serving(service) as servers:
        health = health_pb2_grpc.HealthStub(servers.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == kinds.NOT_SERVING
        servers.grpc.set_serving(True)
        assert (await watch.read()).status == kinds.SERVING
        for name in SERVICES:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == kinds.SERVING
        unknown = health.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert (await failure_of(unknown)).code() is grpc.StatusCode.NOT_FOUND
        servers.grpc.set_serving(False)
        assert (await watch.read()).status == kinds.NOT_SERVING
        watch.cancel()


@pytest.mark.asyncio
async def test_status_once_and_watched(tiny_checkpoint: Path) -> None:
    stats = ModelStats("demo", {"batch": 2}, {"interactive": 1}, 4096, 8192, 7, 1, 0, 2.5)
    engine = ScriptedEngine(num_restarts=1, stats={"demo": stats})
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        await servers.inference.Complete(make_request())
        status = await servers.admin.GetStatus(pb.GetStatusRequest())
        assert (status.version, status.state, status.device) == (__version__, "ready", "scripted")
        assert status.num_engine_restarts == 1
        (model,) = status.models
        assert dict(model.running) == {"batch": 2}
        assert dict(model.waiting) == {"interactive": 1}
        assert (model.kv_used_bytes, model.kv_total_bytes) == (4096, 8192)
        assert model.output_tokens == 8
        watch = servers.admin.WatchStatus(pb.WatchStatusRequest(interval_ms=100))
        uptimes = [(await watch.read()).uptime_s for _ in range(3)]
        assert uptimes == sorted(set(uptimes))
        watch.cancel()
        for interval_ms in (-1, 99, 60_001):
            refused = servers.admin.WatchStatus(pb.WatchStatusRequest(interval_ms=interval_ms))
            assert (await failure_of(refused)).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
async def test_usage_tells_piggybacked_tokens(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(half_piggybacked)
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        whole = await servers.inference.Complete(make_request(n=2))
        assert (whole.usage.output_tokens, whole.usage.piggybacked_tokens) == (16, 8)
        *_, last = [chunk async for chunk in servers.inference.Generate(make_request())]
        assert (last.usage.output_tokens, last.usage.piggybacked_tokens) == (8, 4)


@pytest.mark.asyncio
async def test_status_of_work_on_the_host(tiny_checkpoint: Path) -> None:
    stats = ModelStats("demo", {}, {}, 0, 0, 0, 0, 0, 0.0)
    engine = ScriptedEngine(stats={"demo": stats})
    async with serving(make_service(tiny_checkpoint, engine)) as servers:
        (model,) = (await servers.admin.GetStatus(pb.GetStatusRequest())).models
        assert not model.HasField("piggyback")
        engine.stats["demo"] = replace(stats, piggyback=make_piggyback_stats())
        (model,) = (await servers.admin.GetStatus(pb.GetStatusRequest())).models
        assert model.piggyback == pb.PiggybackStatus(
            active=True,
            host_state="ready",
            num_offloaded=11,
            kv_used_bytes=21,
            kv_total_bytes=22,
            num_rows_joined=28,
            num_tokens=14,
            rows_on_host=[6, 7],
            rows_ready=[10, 2],
            num_swaps_out=16,
            num_swaps_in=17,
        )


@pytest.mark.asyncio
async def test_a_port_in_use_is_named(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        service = make_service(tiny_checkpoint)
        server = GrpcServer(service, address)
        with pytest.raises(ConfigError, match=f"listen.grpc: cannot listen on {address}"):
            await server.start()
        await server.stop(0)
