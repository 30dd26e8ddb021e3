"""Traces of real calls, as a collector gets them over both of its protocols."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_servers import Servers, serving
from http_client import make_body, make_client
from service_builders import ScriptedEngine, make_service, sample, silent, until
from trace_collector import Collector, attributes, grpc_collector, http_collector

from omniserve.config_listen import TracingConfig
from omniserve.decision import Decision
from omniserve.errors import ConfigError
from omniserve.tracing.opening import open_tracing
from omniserve.v1 import omniserve_pb2 as pb

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
SECRET = "the quick brown fox"
CLOSE_S = 60.0
SERVER_KIND, ERROR_CODE = 2, 2


@asynccontextmanager
async def traced(
    checkpoint: Path, engine: ScriptedEngine | None = None, **config: Any
) -> AsyncIterator[Servers]:
    """Servers whose calls are traced; when the block is left, all spans were sent or given up."""
    service = make_service(checkpoint, engine)
    tracing = open_tracing(TracingConfig(**config), service)
    assert tracing is not None
    try:
        async with serving(service) as servers:
            yield servers
    finally:
        await tracing.close(CLOSE_S)


async def generate(servers: Servers, **fields: Any) -> None:
    metadata = fields.pop("metadata", ())
    request = pb.GenerateRequest(
        model="demo", text=SECRET, sampling=pb.Sampling(max_tokens=3), **fields
    )
    async for _ in servers.inference.Generate(request, metadata=metadata):
        pass


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("collecting", "protocol"), [(grpc_collector, "grpc"), (http_collector, "http")]
)
async def test_a_call_becomes_a_span_with_its_timeline(
    tiny_checkpoint: Path,
    collecting: Callable[[], AbstractContextManager[Collector]],
    protocol: str,
) -> None:
    engine = ScriptedEngine()
    later_s = time.monotonic() + 1000
    waits = Decision(0, later_s, later_s + 0.5, 3, "waits", "no room", "a detail")
    engine.timelines["mine"] = (waits,)
    with collecting() as collector:
        config = {"endpoint": collector.endpoint, "protocol": protocol}
        async with traced(tiny_checkpoint, engine, **config) as servers:
            metadata = (("traceparent", SAMPLED), ("tracestate", "vendor=1"))
            await generate(servers, request_id="mine", tier="voice", metadata=metadata)
        (span,) = collector.spans
    assert (span.name, span.kind) == ("Inference.Generate", SERVER_KIND)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.trace_state == "vendor=1"
    assert span.status.code == 0
    found = attributes(span)
    assert found.pop("network.peer.address").startswith("127.0.0.1:")
    times = {name: found.pop(f"omniserve.{name}_ms") for name in ("ttft", "tpot", "e2e")}
    assert 0 < times["ttft"] < times["e2e"]
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": "Inference.Generate",
        "rpc.response.status_code": "OK",
        "gen_ai.request.model": "demo",
        "gen_ai.usage.input_tokens": found["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": 3,
        "omniserve.request_id": "mine",
        "omniserve.tier": "voice",
        "omniserve.outcome": "ok",
        "omniserve.cached_tokens": 0,
        "omniserve.piggybacked_tokens": 0,
    }
    events = {event.name: attributes(event) for event in span.events}
    assert list(events) == ["received", "tokenised", "first token sent", "ended", "waits"]
    assert events["waits"] == {
        "reason": "no room",
        "detail": "a detail",
        "sequence": 0,
        "times": 3,
        "for_ms": 500.0,
    }
    inside = [event.time_unix_nano for event in span.events if event.name != "waits"]
    assert inside == sorted(inside)
    assert all(span.start_time_unix_nano <= each <= span.end_time_unix_nano for each in inside)
    resource = attributes(collector.resource_spans[0].resource)
    assert resource["service.name"] == "omniserve"
    assert resource["service.version"]


@pytest.mark.asyncio
async def test_calls_over_http_and_what_is_refused(tiny_checkpoint: Path) -> None:
    with grpc_collector() as collector:
        async with (
            traced(tiny_checkpoint, endpoint=collector.endpoint) as servers,
            make_client(servers.url) as http,
        ):
            path = "/v1/completions"
            headers = {"TraceParent": SAMPLED, "x-request-id": "one"}
            assert (await http.post(path, json=make_body(path), headers=headers)).is_success
            body = make_body(path, model=SECRET)
            assert (await http.post(path, json=body)).status_code == 404
            assert (await http.get(f"/{SECRET}")).status_code == 404
            assert (await http.get("/health")).is_success
        answered, refused, unknown = collector.spans
        raw = collector.raw
    assert answered.trace_id.hex() == TRACE_ID
    found = attributes(answered)
    assert found["http.request.method"] == "POST"
    assert found["http.route"] == path
    assert found["http.response.status_code"] == 200
    assert found["omniserve.request_id"] == "one"
    assert attributes(refused)["omniserve.outcome"] == "invalid"
    assert not refused.parent_span_id
    assert unknown.name == "GET"
    assert SECRET.encode() not in raw
    assert b"Hello" not in raw


@pytest.mark.asyncio
async def test_failures_of_the_server_are_errors_and_refusals_are_not(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine(ready=False)
    with grpc_collector() as collector:
        async with traced(tiny_checkpoint, engine, endpoint=collector.endpoint) as servers:
            with pytest.raises(grpc.aio.AioRpcError):
                await generate(servers)
            engine.ready, engine.script = True, silent
            with pytest.raises(grpc.aio.AioRpcError):
                await generate(servers, deadline_ms=20)
            with pytest.raises(grpc.aio.AioRpcError):
                await generate(servers, tier="no such tier")
        spans = collector.spans
    kinds = [attributes(span).get("error.type") for span in spans]
    assert sorted(map(str, kinds)) == ["DeadlineExceeded", "EngineUnavailable", "None"]
    assert [span.status.code == ERROR_CODE for span in spans] == [bool(kind) for kind in kinds]


@pytest.mark.asyncio
async def test_callers_decide_for_their_traces_and_the_share_for_all_others(
    tiny_checkpoint: Path,
) -> None:
    with grpc_collector() as collector:
        async with traced(
            tiny_checkpoint, endpoint=collector.endpoint, sample_share=0.0
        ) as servers:
            await generate(servers, metadata=(("traceparent", SAMPLED),))
            await generate(servers)
            for header in (NOT_SAMPLED, "nonsense", "ff" * 20, f"{SAMPLED}{'-0' * 300}"):
                await generate(servers, metadata=(("traceparent", header),))
        (span,) = collector.spans
    assert span.trace_id.hex() == TRACE_ID


@pytest.mark.asyncio
async def test_a_broken_header_begins_a_trace(tiny_checkpoint: Path) -> None:
    with grpc_collector() as collector:
        async with traced(tiny_checkpoint, endpoint=collector.endpoint) as servers:
            await generate(servers, metadata=(("traceparent", f"00-{'0' * 32}-{PARENT_ID}-01"),))
        (span,) = collector.spans
    assert not span.parent_span_id
    assert span.trace_id.hex() != "0" * 32


@pytest.mark.asyncio
async def test_the_log_names_the_trace(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "omniserve")
    with grpc_collector() as collector:
        async with traced(tiny_checkpoint, endpoint=collector.endpoint) as servers:
            await generate(servers)
        (span,) = collector.spans
    lines = [vars(each)["omniserve_fields"] for each in caplog.records if each.msg == "%s"]
    assert span.trace_id.hex() in [fields.get("trace_id") for fields in lines]


@pytest.mark.asyncio
async def test_a_collector_that_takes_and_never_answers_slows_nothing(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "omniserve")
    with socket.create_server(("127.0.0.1", 0)) as dead:
        config = TracingConfig(endpoint=f"http://127.0.0.1:{dead.getsockname()[1]}")
        service = make_service(tiny_checkpoint)
        tracing = open_tracing(config, service)
        assert tracing is not None
        async with serving(service) as servers:
            await asyncio.gather(*(generate(servers) for _ in range(50)))
        await tracing.close(0.1)
    labels = ('protocol="grpc"', 'method="Inference.Generate"', 'status="OK"')
    assert sample(service.metrics, "omniserve_calls_total", labels) == 50
    assert sample(service.metrics, "omniserve_trace_spans_total", ['fate="sent"']) == 0
    # Said by the thread that sends, which is not waited for without end.
    await until(lambda: "traces_lost" in [each.getMessage() for each in caplog.records])


def test_without_the_packages_the_configuration_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(tiny_checkpoint)
    for name in [each for each in sys.modules if each.startswith("omniserve.tracing.")]:
        if name != "omniserve.tracing.opening":
            monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"^tracing: needs the package opentelemetry"):
        open_tracing(TracingConfig(endpoint="http://127.0.0.1:4317"), service)
    assert open_tracing(None, service) is None
