"""Builders for tests of the status: requests that stand somewhere, statuses, the page's server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_servers import make_reloader

from omniserve.api.http_server import HttpServer
from omniserve.api.status_page.routes import status_routes
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter
from omniserve.status.request_board import RequestStanding
from omniserve.v1 import omniserve_pb2 as pb


@dataclass(eq=False)
class Standing:
    """A request that stands where it is told."""

    standing: RequestStanding


def make_standing(request_id: str = "r", *, num_output_tokens: int = 0) -> Standing:
    return Standing(
        RequestStanding(
            request_id=request_id,
            engine_id=f"{request_id}/1",
            model="demo",
            tier="batch",
            tenant="acme",
            arrival_s=1.0,
            num_prompt_tokens=3,
            num_output_tokens=num_output_tokens,
            num_piggybacked_tokens=0,
        )
    )


def make_reporter(service: GenerationService, **options: Any) -> StatusReporter:
    return StatusReporter(service, make_reloader(service, Path("not-there.yaml")), **options)


@asynccontextmanager
async def showing(service: GenerationService, reporter: StatusReporter) -> AsyncIterator[str]:
    """The URL of a server that has the page."""
    server = HttpServer(service, "127.0.0.1:0", None, status_routes(reporter))
    await server.start()
    try:
        yield f"http://{server.address}"
    finally:
        reporter.feed.close()
        await server.stop(1)


def make_status(**fields: Any) -> pb.Status:
    """Of a busy daemon with two tiers and one model that piggybacks."""
    tiers = [
        pb.TierStatus(
            model="demo",
            tier="interactive",
            service_class="latency_sensitive",
            ttft_ms=500,
            tpot_ms=100,
            percentile=99,
            ttft_attainment=0.995,
            tpot_attainment=0.5,
            num_running=3,
            num_waiting=1,
            output_tokens=12_345,
            num_refused=7,
            output_tokens_per_s=42.0,
        ),
        pb.TierStatus(model="demo", tier="batch", service_class="best_effort", num_running=5),
    ]
    piggyback = pb.PiggybackStatus(
        active=True,
        host_state="ready",
        num_offloaded=4,
        kv_used_bytes=3 << 20,
        kv_total_bytes=9 << 20,
        rows_on_host=[0, 2, 1],
        rows_ready=[1, 0, 0],
    )
    model = pb.ModelStatus(
        name="demo", kv_used_bytes=8 << 20, kv_total_bytes=16 << 20, num_steps=99, step_ms=12.5
    )
    model.piggyback.CopyFrom(piggyback)
    request = pb.RequestStatus(
        request_id="chat-1", model="demo", tier="interactive", phase="decoding", age_s=2.5
    )
    refusal = pb.Refusal(tier="interactive", reason="too late", age_s=65, retry_after_s=1.5)
    values = {
        "version": "1.2.3",
        "state": "ready",
        "device": "cpu",
        "uptime_s": 3725.0,
        "tiers": tiers,
        "models": [model],
        "host": pb.HostStatus(num_cores=2, num_host_cores=1, busy_share=0.5),
        "requests": [request],
        "refusals": [refusal],
    }
    return pb.Status(**{**values, **fields})
