"""The status page in a real browser, of a real daemon."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from chromium import BROWSER, Chromium, running_chromium
from daemon_fixture import RunningDaemon
from daemon_process import DaemonProcess

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here; Debian has it in the package chromium"
)

PATIENCE_S = 60.0
HOSTILE = "<img src=x onerror=document.title='owned'><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with running_chromium() as chromium:
        yield chromium


@pytest.fixture
def address() -> Iterator[str]:
    """Nobody is given its port who does not ask for it, also while nobody listens there."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def long_request(daemon: RunningDaemon, request_id: str, tier: str = "batch") -> Iterator[None]:
    """It runs as long as the block does."""
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = omniserve_pb2_grpc.InferenceStub(channel)
        sampling = pb.Sampling(ignore_eos=True)
        request = pb.GenerateRequest(
            model="demo", text="Hi", sampling=sampling, request_id=request_id, tier=tier
        )
        call = stub.Generate(request, timeout=PATIENCE_S)
        next(call)
        yield
        call.cancel()


def refuse(daemon: RunningDaemon, request_id: str, tier: str = "gold") -> None:
    answer = httpx.post(
        f"{daemon.http_url}/v1/completions",
        json={"model": "demo", "prompt": "Hi"},
        headers={"x-request-id": request_id, "x-omniserve-tier": tier},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 400


def check_clean(browser: Chromium, url: str) -> None:
    """Nothing failed in the page, and it asked nobody else for anything."""
    assert browser.problems == []
    assert {urlsplit(each).netloc for each in browser.asked_urls} == {urlsplit(url).netloc}


def test_the_page_shows_the_daemon_and_keeps_up(browser: Chromium, daemon: RunningDaemon) -> None:
    browser.problems.clear()
    browser.asked_urls.clear()
    browser.open(f"{daemon.http_url}/")
    browser.wait_for_text("#state", "ready")
    browser.wait_for_text("#link", "live")
    assert "interactive" in browser.text("#tiers") and "≤ 2 s" in browser.text("#tiers")
    assert "demo" in browser.text("#models") and "Device KV" in browser.text("#models")
    assert "of " in browser.text("#cards")
    with long_request(daemon, "live-1"):
        browser.wait_for_text("#requests", "live-1")
        browser.wait_for_text("#requests", "decoding")
        browser.wait_until("document.title.startsWith('1 ')")
    browser.wait_until("document.querySelector('#requests').hidden")
    refuse(daemon, "page-refused")
    browser.wait_for_text("#refusals", "page-refused")
    assert "'gold' is not served" in browser.text("#refusals")
    browser.wait_until("document.querySelectorAll('#tiers .spark .line').length > 0")
    check_clean(browser, daemon.http_url)


def test_what_clients_send_is_shown_as_text(browser: Chromium, daemon: RunningDaemon) -> None:
    browser.problems.clear()
    refuse(daemon, HOSTILE, tier="<script>alert(1)</script>")
    browser.open(f"{daemon.http_url}/")
    browser.wait_for_text("#refusals", HOSTILE)
    browser.wait_for_text("#refusals", "<script>alert(1)</script>")
    foreign = "[...document.querySelectorAll('main img, main b, main script')]"
    assert browser.evaluate(f"{foreign}.every(each => each.matches('#models .numbers b'))")
    assert browser.evaluate("document.title").endswith("OmniServe")
    assert browser.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_and_in_the_dark(
    browser: Chromium, daemon: RunningDaemon, scheme: str
) -> None:
    browser.open(f"{daemon.http_url}/", width=380, height=800, scheme=scheme)
    browser.wait_for_text("#state", "ready")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 380
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = browser.evaluate("getComputedStyle(document.body).color")
    assert contrast(paper, ink) >= 7
    assert (luminance(paper) < 0.5) == (scheme == "dark")
    faint = browser.evaluate("getComputedStyle(document.querySelector('#facts')).color")
    assert contrast(paper, faint) >= 4.5


def luminance(colour: str) -> float:
    """Relative, of `rgb(r, g, b)`, as accessibility guidelines define it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_lost_daemon_is_noticed_and_found_again(
    browser: Chromium, tiny_checkpoint: Path, tmp_path: Path, address: str
) -> None:
    config = tmp_path / "omniserve.yaml"
    config.write_text(
        f'listen: {{grpc: "127.0.0.1:0", http: "{address}"}}\n'
        f"models: [{{name: demo, path: {tiny_checkpoint}, step_times: none}}]\n"
        "tiers: [{name: batch, class: best_effort}]\n"
    )
    command = (str(Path(__file__).parent / "scripted_daemon.py"), str(config))
    with DaemonProcess(*command) as daemon:
        daemon.wait_ready()
        browser.open(f"http://{address}/")
        browser.wait_for_text("#state", "ready")
        config.write_text(config.read_text().replace("best_effort", "no_such_class"))
        daemon.signal(signal.SIGHUP)
        browser.wait_for_text("#problem", "no_such_class")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0, daemon.log
        browser.wait_for_text("#link", "connection lost")
    config.write_text(config.read_text().replace("no_such_class", "best_effort"))
    with DaemonProcess(*command) as daemon:
        daemon.wait_ready()
        browser.wait_for_text("#link", "live")
        browser.wait_until("document.querySelector('#problem').hidden")
