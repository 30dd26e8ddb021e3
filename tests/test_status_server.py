"""Who is shown metrics and status page: everyone on this machine, and never a tenant's network."""

import hashlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_servers import make_reloader, serving
from http_client import make_client
from service_builders import ScriptedEngine, make_config, make_service

from omniserve.api.status_page.routes import status_routes
from omniserve.api.status_server import StatusServer
from omniserve.calls.call_log import STRANGERS_BURST, CallLog
from omniserve.config_tenant import TenantConfig
from omniserve.errors import ConfigError
from omniserve.metrics import Metrics
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter

TOKEN = "omni_" + "a" * 43
PATHS = ("/", "/status.json", "/metrics")


def tenants_service(checkpoint: Path) -> GenerationService:
    token_sha256 = hashlib.sha256(TOKEN.encode()).hexdigest()
    tenants = (TenantConfig(name="someone", token_sha256=(token_sha256,)),)
    config = make_config(checkpoint).model_copy(update={"tenants": tenants})
    return GenerationService(config, ScriptedEngine(), Metrics())


@asynccontextmanager
async def status_server(service: GenerationService) -> AsyncIterator[str]:
    reporter = StatusReporter(service, make_reloader(service, Path("not-there.yaml")))
    server = StatusServer(service, "127.0.0.1:0", None, status_routes(reporter))
    await server.start()
    try:
        yield f"http://{server.address}"
    finally:
        await server.stop(0)


@pytest.mark.asyncio
async def test_without_tenants_the_api_server_has_all(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers, make_client(servers.url) as http:
        for path in (*PATHS, "/health"):
            assert (await http.get(path)).status_code == 200


@pytest.mark.asyncio
async def test_with_tenants_the_api_server_has_neither(tiny_checkpoint: Path) -> None:
    service = tenants_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        headers = {"authorization": f"Bearer {TOKEN}"}
        for path in PATHS:
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers=headers)).status_code == 404
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        # By whatever name: a page of another site has no token.
        headers["host"] = "llm.example.org"
        assert (await http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.asyncio
async def test_the_status_server_has_all_but_the_api(tiny_checkpoint: Path) -> None:
    async with status_server(tenants_service(tiny_checkpoint)) as url, make_client(url) as http:
        for path in (*PATHS, "/health"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get("/metrics")).text.startswith("# HELP ")
        foreign = {"host": "evil.example"}
        for path in (*PATHS, "/health"):
            assert (await http.get(path, headers=foreign)).status_code == 421
        for path in ("/v1/models", "/v1/completions"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (
                404,
                "invalid_request_error",
            )


@pytest.mark.asyncio
async def test_pages_of_other_sites_do_not_fill_the_log(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "omniserve")
    service, now_s = make_service(tiny_checkpoint), time.monotonic()
    # While time stands still, no more lines are let through.
    service.calls = CallLog(service.metrics, service.board, clock=lambda: now_s)
    async with status_server(service) as url, make_client(url) as http:
        for _ in range(3 * STRANGERS_BURST):
            await http.get("/status.json", headers={"host": "evil.example"})
    num_lines = sum(each.message == "request" for each in caplog.records)
    assert num_lines == STRANGERS_BURST


@pytest.mark.asyncio
async def test_its_address_in_use_is_named(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    async with status_server(service) as url:
        other = StatusServer(service, url.removeprefix("http://"))
        with pytest.raises(ConfigError, match=r"listen\.status: cannot listen on 127\.0\.0\.1:"):
            await other.start()
        await other.stop(0)
