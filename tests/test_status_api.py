"""The status page's routes on real sockets."""

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from http_client import make_client
from service_builders import ScriptedEngine, make_config, make_service, until
from starlette.routing import Route
from status_builders import make_reporter, showing

from omniserve.api.http_app import answering
from omniserve.api.http_listener import HttpListener
from omniserve.api.http_local_names import is_local_name
from omniserve.api.status_page.events import StatusEvents
from omniserve.config import Config
from omniserve.metrics import Metrics
from omniserve.service import GenerationService
from omniserve.status.feed import MAX_WATCHERS, StatusFeed

FILES = {
    "/": "text/html",
    "/status/page.css": "text/css",
    "/status/page.js": "text/javascript",
    "/status/sections.js": "text/javascript",
    "/status/history.js": "text/javascript",
    "/status/draw.js": "text/javascript",
    "/status/icon.svg": "image/svg+xml",
}


async def read_event(lines: Any) -> Any:
    async for line in lines:
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))
    return None


@pytest.mark.asyncio
async def test_the_page_and_all_that_it_loads(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    async with showing(service, make_reporter(service)) as url, make_client(url) as http:
        for path, kind in FILES.items():
            answer = await http.get(path)
            assert answer.status_code == 200 and len(answer.content) > 100, path
            assert answer.headers["content-type"].split(";")[0] == kind
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert (await http.post(path)).status_code == 405
        page = (await http.get("/")).text
    # Nothing is loaded that is not among the routes, and nothing in the page itself can run.
    assert "http://" not in page and "https://" not in page
    assert "style=" not in page and " on" not in page.split("<body>")[1].split("<noscript>")[0]
    assert page.count("<script") == page.count('<script type="module" src="status/page.js">') == 1


@pytest.mark.asyncio
async def test_status_and_history_as_json(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(num_restarts=2))
    reporter = make_reporter(service)
    reporter.sample()
    reporter.sample()
    async with showing(service, reporter) as url, make_client(url) as http:
        answer = await http.get("/status.json")
    assert answer.headers["content-type"] == "application/json"
    assert "no-store" in answer.headers["cache-control"]
    document = answer.json()
    assert document["status"]["num_engine_restarts"] == 2
    assert [tier["tier"] for tier in document["status"]["tiers"]] == [
        *("interactive", "voice", "batch")
    ]
    assert document["history"]["num_points"] == 1


@pytest.mark.asyncio
async def test_events_come_whenever_there_is_news(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    reporter = make_reporter(service)
    async with (
        showing(service, reporter) as url,
        make_client(url) as http,
        http.stream("GET", "/status/events") as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        lines = answer.aiter_lines()
        assert (await read_event(lines))["num_engine_restarts"] == 0
        for num_restarts in (1, 2):
            engine.num_restarts = num_restarts
            reporter.feed.publish()
            assert (await read_event(lines))["num_engine_restarts"] == num_restarts
        reporter.feed.close()
        assert await read_event(lines) is None
        assert (await http.get("/status/events")).status_code == 503


@pytest.mark.asyncio
async def test_events_that_cannot_be_made_end_and_are_in_the_log(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write() -> bytes:
        raise ZeroDivisionError("no status")

    config, feed = make_config(tiny_checkpoint), StatusFeed(write)
    app = answering([Route("/events", StatusEvents(feed, {}))])
    listener = HttpListener(app, "127.0.0.1:0", "listen.http", config.limits, None)
    await listener.start()
    async with make_client(f"http://{listener.address}") as http:
        assert (await http.get("/events")).text == ""
    await listener.stop(1)
    (record,) = caplog.records
    assert (record.message, record.levelname) == ("status_events_failed", "ERROR")
    assert record.exc_info is not None and "no status" in str(record.exc_info[1])


@pytest.mark.asyncio
async def test_watchers_are_limited_and_those_who_leave_make_room(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    reporter = make_reporter(service)
    async with showing(service, reporter) as url, AsyncExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            http = await stack.enter_async_context(make_client(url))
            answer = await stack.enter_async_context(http.stream("GET", "/status/events"))
            assert answer.status_code == 200
        async with make_client(url) as http:
            refused = await http.get("/status/events")
            assert refused.status_code == 503 and "too many" in refused.text
            assert (await http.get("/status.json")).status_code == 200
            assert (await http.head("/status/events")).status_code == 503
        await stack.aclose()
        feed = reporter.feed
        await until(lambda: feed._num_watchers == 0)


@pytest.mark.asyncio
async def test_a_running_reporter_publishes_and_its_end_closes_the_feed(
    tiny_checkpoint: Path,
) -> None:
    reporter = make_reporter(make_service(tiny_checkpoint))
    running = asyncio.create_task(reporter.run())
    await reporter.feed.change()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert reporter.feed.is_closed


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8001", "[::1]:80", "[::1]"],
)
def test_names_of_this_machine(host: str) -> None:
    assert is_local_name(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io:80"]
)
@pytest.mark.asyncio
async def test_pages_of_other_names_cannot_read_it(tiny_checkpoint: Path, host: str) -> None:
    assert not is_local_name(host)
    service = make_service(tiny_checkpoint)
    async with showing(service, make_reporter(service)) as url, make_client(url) as http:
        for path in ("/", "/status.json", "/status/events"):
            answer = await http.get(path, headers={"host": host})
            assert answer.status_code == 421 and "localhost" in answer.json()["error"]["message"]


@pytest.mark.asyncio
async def test_calls_that_never_became_a_request_are_among_the_refused(
    tiny_checkpoint: Path,
) -> None:
    service = make_service(tiny_checkpoint)
    reporter = make_reporter(service)
    async with showing(service, reporter) as url, make_client(url) as http:
        headers = {"x-request-id": "half", "content-type": "application/json"}
        await http.post("/v1/completions", content=b'{"model": ', headers=headers)
        await http.post("/v1/completions", json={"model": "none", "prompt": "x"})
        await http.get("/no/such/page")
    unknown, broken = reporter.status().refusals
    assert "model 'none' is not served" in unknown.reason
    assert "JSON" in broken.reason and broken.request_id in ("", "half")


@pytest.mark.asyncio
async def test_strangers_are_not_among_the_refused_and_tenants_have_their_quotas(
    tiny_checkpoint: Path,
) -> None:
    tenant = {"name": "acme", "token_sha256": "0" * 64, "quota": {"concurrent": 2}}
    fields = make_config(tiny_checkpoint).model_dump(by_alias=True, exclude_none=True)
    config = Config.model_validate(fields | {"tenants": [tenant]})
    service = GenerationService(config, ScriptedEngine(), Metrics())
    reporter = make_reporter(service)
    async with showing(service, reporter) as url, make_client(url) as http:
        body = {"model": "demo", "prompt": "x"}
        secret = {"authorization": "Bearer omni_" + "a" * 43}
        assert (await http.post("/v1/completions", json=body, headers=secret)).status_code == 401
        # The page is not where the API is.
        assert (await http.get("/status.json", headers=secret)).status_code == 401
    status = reporter.status()
    # They could drive out all others.
    assert list(status.refusals) == []
    assert service.metrics.refusals.labels("unauthenticated")._value.get() == 2
    (shown,) = status.tenants
    assert (shown.tenant, shown.num_concurrent) == ("acme", 0)
    assert not shown.HasField("input_tokens_share")
