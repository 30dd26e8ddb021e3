"""The gRPC API over real sockets: its contract, and what real tokens look like through it."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import serving
from daemon_fixture import RunningDaemon
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from service_builders import ScriptedEngine, make_output, make_service, silent, until

from omniserve import __version__
from omniserve.api.grpc_server import MAX_MESSAGE_BYTES, SERVICES, GrpcServer
from omniserve.errors import ConfigError
from omniserve.output_buffer import MAX_PENDING
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelStats
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0


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


# Over a scripted engine: the contract.


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
            assert dict(info.metadata) == ({"param": param} if param else {})


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
        error = await failure_of(send_raw(b"\0" * (MAX_MESSAGE_BYTES + 1)))
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
        error = await failure_of(call(make_request(n=2), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(engine.started) == 2 and not engine.running)
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
async def test_a_port_in_use_is_named(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = GrpcServer(make_service(tiny_checkpoint), address)
        with pytest.raises(ConfigError, match=f"listen.grpc: cannot listen on {address}"):
            await server.start()
        await server.stop(0)


# Against the daemon: real tokens.


@pytest.fixture
def stub(daemon: RunningDaemon) -> Any:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        yield omniserve_pb2_grpc.InferenceStub(channel)


def complete(stub: Any, request: pb.GenerateRequest) -> pb.GenerateResult:
    result = stub.Complete(request, timeout=PATIENCE_S)
    assert isinstance(result, pb.GenerateResult)
    return result


def test_stream_and_answer_agree(stub: Any) -> None:
    request = make_request("Once upon a time", max_tokens=24, ignore_eos=True, logprobs=3)
    chunks = list(stub.Generate(request, timeout=PATIENCE_S))
    (choice,) = complete(stub, request).choices
    assert "".join(chunk.text for chunk in chunks) == choice.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(choice.token_ids)
    assert len(choice.token_ids) == 24
    assert chunks[-1].finish_reason == choice.finish_reason == "length"
    assert chunks[-1].usage.output_tokens == 24
    assert not any(chunk.HasField("usage") for chunk in chunks[:-1])


def test_greedy_logprobs_are_the_best_and_spell_the_text(stub: Any) -> None:
    request = make_request("Once upon a time", max_tokens=24, ignore_eos=True, logprobs=3)
    (choice,) = complete(stub, request).choices
    assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    for entry in choice.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0].token_id == entry.token_id
        assert entry.top[0].logprob == pytest.approx(entry.logprob)
        assert entry.logprob <= 0
    spelled = b"".join(entry.token for entry in choice.logprobs).decode(errors="replace")
    assert spelled.startswith(choice.text.rstrip("\ufffd"))


def test_a_stop_string_ends_the_text_before_it(stub: Any) -> None:
    (whole,) = complete(stub, make_request(max_tokens=40, ignore_eos=True)).choices
    assert len(whole.text) > 10
    stop = whole.text[5:9]
    request = make_request(max_tokens=40, ignore_eos=True, stop=[stop])
    (choice,) = complete(stub, request).choices
    assert choice.text == whole.text[: whole.text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.stop_reason.text == stop


def test_a_stop_token_ends_the_request(stub: Any) -> None:
    (whole,) = complete(stub, make_request(max_tokens=20, ignore_eos=True)).choices
    stop = whole.token_ids[6]
    request = make_request(max_tokens=20, ignore_eos=True, stop_token_ids=[stop])
    (choice,) = complete(stub, request).choices
    assert choice.finish_reason == "stop"
    assert choice.stop_reason.token_id == stop
    assert len(choice.token_ids) <= whole.token_ids[:].index(stop) + 1


def test_seeded_choices_differ_and_repeat(stub: Any) -> None:
    request = make_request(temperature=1.0, seed=7, n=3, max_tokens=12, ignore_eos=True)
    first, second = complete(stub, request), complete(stub, request)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    alone = make_request(temperature=1.0, seed=8, max_tokens=12, ignore_eos=True)
    assert complete(stub, alone).choices[0].text == texts[1]
    assert first.usage.output_tokens == 36


def test_text_tokens_and_chat_are_the_same_prompt(stub: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")])
    tokens = stub.Tokenize(pb.TokenizeRequest(model="demo", chat=chat), timeout=PATIENCE_S)
    detokenize = pb.DetokenizeRequest(
        model="demo", token_ids=tokens.token_ids, keep_special_tokens=True
    )
    text = stub.Detokenize(detokenize, timeout=PATIENCE_S).text
    assert "Hi" in text
    sampling = make_request(ignore_eos=True).sampling
    prompts = (
        {"chat": chat},
        {"text": text},
        {"token_ids": pb.TokenIds(ids=tokens.token_ids)},
    )
    answers = [
        complete(stub, pb.GenerateRequest(model="demo", sampling=sampling, **prompt))
        for prompt in prompts
    ]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert {answer.usage.prompt_tokens for answer in answers} == {len(tokens.token_ids)}


def test_models_and_tiers_are_listed(stub: Any) -> None:
    listed = stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
    (model,) = listed.models
    assert (model.name, model.default_tier, model.dtype) == ("demo", "interactive", "float32")
    assert model.architecture == "Qwen3ForCausalLM"
    assert model.max_model_len > 100
    assert [tier.name for tier in listed.tiers] == ["interactive", "batch"]
    assert listed.tiers[0].ttft_ms == 2000
    assert not listed.tiers[1].HasField("ttft_ms")


def test_an_overlong_prompt_names_the_numbers(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        complete(stub, make_request("word " * 40_000))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_built_from_reflection_alone(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(SERVICES) <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("omniserve.v1.Inference")
        method = service.methods_by_name["Generate"]
        request_class = message_factory.GetMessageClass(method.input_type)
        chunk_class: Any = message_factory.GetMessageClass(method.output_type)
        generate = channel.unary_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=chunk_class.FromString,
        )
        request = request_class(
            model="demo",
            text="Hello",
            sampling={"temperature": 0.0, "max_tokens": 5, "ignore_eos": True},
        )
        chunks = list(generate(request, timeout=PATIENCE_S))
        assert sum(len(chunk.token_ids) for chunk in chunks) == 5
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].usage.output_tokens == 5
