"""Every call leaves one line in the log and one count, whatever becomes of it."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_servers import serving
from http_client import CHAT, COMPLETIONS, make_body, make_client
from service_builders import ScriptedEngine, make_service, sample, silent, until
from tenant_builders import bearer, make_tenant, make_tenanted_service

from omniserve import generation_stream
from omniserve.calls.call_log import STRANGERS_BURST, CallLog
from omniserve.calls.call_record import CallRecord, current_call
from omniserve.errors import Overloaded, QuotaExceeded, Unauthenticated, UnknownRequest
from omniserve.metrics import Metrics
from omniserve.service import GenerationService
from omniserve.status.request_board import RequestBoard
from omniserve.v1 import omniserve_pb2 as pb

SECRET = "the quick brown fox"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Fields of the lines about calls, in order."""
    return [vars(each)["omniserve_fields"] for each in requests(caplog)]


def requests(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.getMessage() == "request"]


def refusals(metrics: Metrics) -> Mapping[str, float]:
    """Those reasons that there were."""
    samples = (sample for family in metrics.refusals.collect() for sample in family.samples)
    return {each.labels["reason"]: each.value for each in samples if each.value}


def num_calls(service: GenerationService, protocol: str, method: str, status: str) -> float:
    labels = (f'protocol="{protocol}"', f'method="{method}"', f'status="{status}"')
    return sample(service.metrics, "omniserve_calls_total", labels)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "omniserve")


@pytest.mark.asyncio
async def test_a_request_over_grpc(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(tiny_checkpoint)
    async with serving(service) as servers:
        request = pb.GenerateRequest(
            model="demo", text=SECRET, request_id="mine", tier="voice", tenant="acme"
        )
        request.sampling.max_tokens = 3
        await servers.inference.Complete(request)
    (fields,) = lines(caplog)
    assert fields.pop("peer").startswith("127.0.0.1:")
    for name in ("ttft_ms", "tpot_ms", "e2e_ms", "duration_ms", "prompt_tokens"):
        assert fields.pop(name) > 0
    assert fields == {
        "request_id": "mine",
        "tenant": "acme",
        "protocol": "grpc",
        "method": "Inference.Complete",
        "status": "OK",
        "outcome": "ok",
        "model": "demo",
        "tier": "voice",
        "cached_tokens": 0,
        "output_tokens": 3,
        "piggybacked_tokens": 0,
    }
    assert num_calls(service, "grpc", "Inference.Complete", "OK") == 1
    assert refusals(service.metrics) == {}


@pytest.mark.asyncio
async def test_a_stream_over_http(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        answer = await http.post(CHAT, json=make_body(CHAT, stream=True))
    (fields,) = lines(caplog)
    assert fields["request_id"] == answer.headers["x-request-id"]
    assert fields["method"] == "POST /v1/chat/completions"
    assert (fields["status"], fields["outcome"], fields["output_tokens"]) == ("200", "ok", 3)
    assert num_calls(service, "http", "POST /v1/chat/completions", "200") == 1


@pytest.mark.asyncio
async def test_refused_calls_over_http_leave_a_line_each(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        json_type, text_type = "application/json", "text/plain"
        for path, content, kind in (
            (COMPLETIONS, b"{", json_type),
            (COMPLETIONS, b"{}", text_type),
            (f"/{SECRET}", b"", json_type),
            ("/health", b"", json_type),
            (COMPLETIONS, b'{"model": "%s", "prompt": "x"}' % SECRET.encode(), json_type),
            (COMPLETIONS, b'{"model": "demo", "prompt": "x", "n": 99}', json_type),
        ):
            headers = {"content-type": kind}
            answer = await http.post(path, content=content, headers=headers)
            assert answer.is_client_error
        assert (await http.request("PROPFIND", "/v1/models")).status_code == 405
    found = [(each["method"], each["status"], each["reason"]) for each in lines(caplog)]
    assert found == [
        ("POST /v1/completions", "400", "invalid"),
        ("POST /v1/completions", "415", "invalid"),
        ("POST", "404", "invalid"),
        ("POST /health", "405", "invalid"),
        ("POST /v1/completions", "404", "unknown_model"),
        ("POST /v1/completions", "400", "invalid"),
        ("other /v1/models", "405", "invalid"),
    ]
    assert {each["outcome"] for each in lines(caplog)} == {"invalid"}
    assert refusals(service.metrics) == {"invalid": 6, "unknown_model": 1}
    assert SECRET not in caplog.text
    assert SECRET not in str(lines(caplog))


@pytest.mark.asyncio
async def test_refused_calls_over_grpc_leave_a_line_each(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    async with serving(service) as servers:
        complete = servers.inference.Complete
        garbage: Any = servers.channel.unary_unary("/omniserve.v1.Inference/Complete")
        calls: list[Any] = [
            lambda: complete(pb.GenerateRequest(model="demo")),
            lambda: complete(pb.GenerateRequest(model=SECRET, text=SECRET)),
            lambda: garbage(b"\xff\xff\xff"),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError):
                await call()
        engine.ready = False
        with pytest.raises(grpc.aio.AioRpcError):
            await complete(pb.GenerateRequest(model="demo", text=SECRET))
    found = [(each["status"], each["reason"]) for each in lines(caplog)]
    assert found == [
        ("INVALID_ARGUMENT", "invalid"),
        ("NOT_FOUND", "unknown_model"),
        ("INVALID_ARGUMENT", "invalid"),
        ("UNAVAILABLE", "unavailable"),
    ]
    assert refusals(service.metrics) == {"invalid": 2, "unknown_model": 1, "unavailable": 1}
    assert SECRET not in str(lines(caplog))


@pytest.mark.asyncio
async def test_clients_that_go_away_and_deadlines(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the call to reach the engine; by so much the client's clock is ahead that
    # began as it was on its way.
    deadline_s = 3.0
    monkeypatch.setattr(generation_stream, "_AHEAD_S", deadline_s)
    engine = ScriptedEngine(script=silent)
    service = make_service(tiny_checkpoint, engine)
    request = pb.GenerateRequest(model="demo", text="Hello")
    async with serving(service) as servers, make_client(servers.url) as http:
        call = servers.inference.Complete(request)
        await until(lambda: len(engine.started) == 1)
        call.cancel()
        await until(lambda: len(requests(caplog)) == 1)
        with pytest.raises(grpc.aio.AioRpcError):
            await servers.inference.Complete(request, timeout=deadline_s)
        await until(lambda: len(requests(caplog)) == 2)
        post = asyncio.create_task(http.post(COMPLETIONS, json=make_body(COMPLETIONS)))
        await until(lambda: len(engine.started) == 3)
        post.cancel()
        await until(lambda: len(requests(caplog)) == 3)
    found = [(each["status"], each["outcome"], each.get("reason")) for each in lines(caplog)]
    assert found == [
        ("CANCELLED", "cancelled", None),
        ("DEADLINE_EXCEEDED", "late", "deadline"),
        ("499", "cancelled", None),
    ]
    assert refusals(service.metrics) == {"deadline": 1}


@pytest.mark.asyncio
async def test_monitors_that_look_are_quiet_unless_something_is_wrong(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        for path in ("/health", "/metrics", "/v1/models", "/v1/models/nobody"):
            await http.get(path)
    found = {vars(each)["omniserve_fields"]["method"]: each.levelname for each in requests(caplog)}
    assert found == {
        "GET /health": "DEBUG",
        "GET /metrics": "DEBUG",
        "GET /v1/models": "INFO",
        "GET /v1/models/{name:path}": "INFO",
    }
    assert num_calls(service, "http", "GET /health", "200") == 1


@pytest.mark.asyncio
async def test_tenants_and_strangers(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = make_tenant("acme", tiers=["batch"], quota={"input_tokens_per_minute": 3})
    service = make_tenanted_service(tiny_checkpoint, tenant)
    guess = f"Bearer omni_{SECRET.replace(' ', '_')}"
    async with serving(service) as servers, make_client(servers.url) as http:
        for headers in (
            bearer("acme"),
            bearer("acme"),
            bearer("acme") | {"x-omniserve-tier": "voice"},
            {"authorization": guess},
        ):
            body = make_body(COMPLETIONS, prompt=[1, 2, 3])
            await http.post(COMPLETIONS, json=body, headers=headers)
        with pytest.raises(grpc.aio.AioRpcError):
            await servers.inference.Complete(
                pb.GenerateRequest(model="demo", text="x"), metadata=(("authorization", guess),)
            )
    found = [
        (each["status"], each.get("tenant"), each["outcome"], each.get("reason"))
        for each in lines(caplog)
    ]
    assert found == [
        ("200", "acme", "ok", None),
        ("429", "acme", "over_quota", "quota"),
        ("403", "acme", "denied", "permission_denied"),
        ("401", None, "denied", "unauthenticated"),
        ("UNAUTHENTICATED", None, "denied", "unauthenticated"),
    ]
    assert {each["method"] for each in lines(caplog)} == {
        "POST /v1/completions",
        "Inference.Complete",
    }
    secrets = (bearer("acme")["authorization"].removeprefix("Bearer "), SECRET.replace(" ", "_"))
    assert not any(secret in str(lines(caplog)) for secret in secrets)


def test_refusals_are_counted_by_their_most_special_reason() -> None:
    metrics = Metrics()
    calls = CallLog(metrics)
    for error in (Overloaded("x", 1), QuotaExceeded("x", 1), Unauthenticated("x"), OSError()):
        call = CallRecord("grpc", method="Inference.Generate")
        with pytest.raises(type(error)), calls.following(call):
            assert current_call() is call
            raise error
    assert refusals(metrics) == {"overloaded": 1, "quota": 1, "unauthenticated": 1}


def close_refused(calls: CallLog, error: Exception, **fields: Any) -> None:
    with calls.following(CallRecord("http", **fields)):
        current_call().fail(error)


def test_strangers_fill_neither_the_log_nor_the_list_of_refusals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    metrics, board = Metrics(), RequestBoard()
    calls = CallLog(metrics, board, clock=lambda: now_s)
    close_refused(calls, Overloaded("full", 1), tenant="acme")
    for number in range(100):
        # Some knock where no token is needed.
        method = {"method": "POST /health", "is_routine": True} if number % 2 else {}
        close_refused(calls, ValueError() if number % 2 else Unauthenticated("x"), **method)
    assert len(lines(caplog)) == 1 + STRANGERS_BURST
    close_refused(calls, Overloaded("full", 1), tenant="acme")
    assert len(lines(caplog)) == 2 + STRANGERS_BURST
    now_s = 2.5
    for _ in range(10):
        close_refused(calls, Unauthenticated("x"))
    found = [each.get("left_out") for each in lines(caplog)]
    assert found == [None] * (2 + STRANGERS_BURST) + [100 - STRANGERS_BURST, None]
    assert refusals(metrics) == {"overloaded": 2, "unauthenticated": 60}
    assert [each.reason for each in board.refusals] == ["full", "full"]


def test_mistakes_of_operators_are_not_shown_as_refusals() -> None:
    metrics, board = Metrics(), RequestBoard()
    calls = CallLog(metrics, board)
    close_refused(calls, UnknownRequest("nothing is known of it"), method="Admin.Explain")
    close_refused(calls, Overloaded("full", 1), method="Inference.Generate")
    assert [each.reason for each in board.refusals] == ["full"]


def test_the_first_error_of_a_call_counts(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    call = CallRecord("http")
    with CallLog(metrics).following(call):
        current_call().fail(Unauthenticated("x"))
        current_call().fail(Overloaded("x", 1))
    assert refusals(metrics) == {"unauthenticated": 1}


def test_a_tracer_that_fails_costs_the_call_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenTracer:
        def record(self, call: CallRecord) -> str:
            raise ZeroDivisionError

    calls = CallLog(Metrics())
    calls.trace_to(BrokenTracer())
    with calls.following(CallRecord("http", method="GET")):
        pass
    assert [each.getMessage() for each in caplog.records] == ["tracing_failed", "request"]


def test_outside_of_calls_nobody_listens() -> None:
    current_call().tenant = "acme"
    assert current_call().tenant == ""
