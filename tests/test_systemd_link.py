"""What a service manager hears, from a link over a real socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from systemd_builders import SeenEngine, make_stats

from omniserve.systemd.link import SystemdLink

BUSY = {"chat": 1}
PATIENCE_S = 60.0


class Manager:
    """Reads what the link says; `said` holds every message, each as its variables."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "80000"}

    def said(self) -> list[dict[str, str]]:
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.socket.recv(65536).decode().splitlines()
                messages.append(dict(line.split("=", 1) for line in lines))
        return messages


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


def make_link(manager: Manager, engine: SeenEngine, reload_error: str = "") -> SystemdLink:
    return SystemdLink(engine, lambda: reload_error, manager.environment)


@asynccontextmanager
async def running(link: SystemdLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def heard(manager: Manager, variable: str, value: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while all(message.get(variable) != value for message in manager.said()):
            await asyncio.sleep(0.01)


def test_a_life_in_order(manager: Manager) -> None:
    link = make_link(manager, engine := SeenEngine(state="starting"))
    link.starting(610.0)
    engine.state = "ready"
    link.ready()
    engine.num_in_flight = 3
    link.stopping(47.0)
    assert manager.said() == [
        {"STATUS": "loading models", "EXTEND_TIMEOUT_USEC": "610000000"},
        {"STATUS": "serving demo: idle", "READY": "1"},
        {
            "STATUS": "draining: 3 requests running",
            "STOPPING": "1",
            "EXTEND_TIMEOUT_USEC": "47000000",
        },
    ]


@pytest.mark.asyncio
async def test_signs_of_life_and_what_changes(manager: Manager) -> None:
    link = make_link(manager, engine := SeenEngine())
    link.ready()
    async with running(link):
        await heard(manager, "WATCHDOG", "1")
        engine.report(make_stats(running=BUSY))
        await heard(manager, "STATUS", "serving demo: chat 1 running 0 waiting")
        engine.state = "restarting"
        await heard(manager, "STATUS", "the engine is restarting")


@pytest.mark.asyncio
async def test_a_stalled_engine_is_no_sign_of_life(
    manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniserve.systemd.link.LEAST_PATIENCE_S", 0.05)
    link = make_link(manager, engine := SeenEngine(num_in_flight=1))
    engine.report(make_stats(num_steps=7, running=BUSY))
    link.ready()
    async with running(link):
        stalled = "serving demo: chat 1 running 0 waiting; no step completes"
        await heard(manager, "STATUS", stalled)
        await asyncio.sleep(0.1)
        assert all("WATCHDOG" not in message for message in manager.said())
        # Not afterwards: on a slow machine the next step may be late enough for another stall.
        assert [record.message for record in caplog.records].count("engine_stalled") == 1
        engine.report(make_stats(num_steps=8, running=BUSY))
        await heard(manager, "WATCHDOG", "1")


def test_a_refused_file_is_shown(manager: Manager) -> None:
    make_link(manager, SeenEngine(), "tiers: must not be empty").ready()
    assert manager.said()[0]["STATUS"] == "serving demo: idle; the changed file was refused"


def test_what_was_not_heard_is_said_again(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    environment = {"NOTIFY_SOCKET": str(path)}
    link = SystemdLink(SeenEngine(), lambda: "", environment)
    link.ready()
    with (late := Manager(path)).socket:
        link.stopping(1.0)
        (message,) = late.said()
    assert message["READY"] == "1"
    assert message["STOPPING"] == "1"


def test_without_a_manager_nothing_happens() -> None:
    link = SystemdLink(SeenEngine(), lambda: "", {})
    link.starting(1.0)
    link.ready()
    link.stopping(1.0)


@pytest.mark.asyncio
async def test_without_a_watchdog_nobody_looks_for_a_stall(
    manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniserve.systemd.link.LEAST_PATIENCE_S", 0.0)
    monkeypatch.setattr("omniserve.systemd.link.STATUS_EVERY_S", 0.01)
    del manager.environment["WATCHDOG_USEC"]
    link = make_link(manager, engine := SeenEngine(num_in_flight=1))
    link.ready()
    async with running(link):
        engine.report(make_stats(num_steps=7, running=BUSY))
        await heard(manager, "STATUS", "serving demo: chat 1 running 0 waiting")
        await asyncio.sleep(0.1)
    assert manager.said() == []
    assert caplog.records == []
