"""The daemon as a real process, and what a service manager hears from it."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from daemon_process import PATIENCE_S, DaemonProcess
from test_daemon import SLOW, checkpoint, make_daemon, open_stream, write_config

__all__ = ["checkpoint"]

ONE_TOKEN = ("--token-s", "3600")
"""Then the engine goes on to talk, and does nothing."""


class Manager:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE_S)

    def next(self, is_it: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The next message that is the one meant; those before it are forgotten."""
        while True:
            lines = self.socket.recv(65536).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            if is_it(message):
                return message

    def next_status(self, part: str) -> dict[str, str]:
        return self.next(lambda message: part in message.get("STATUS", ""))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    with manager.socket:
        yield manager


def test_a_life_under_a_manager(manager: Manager, tmp_path: Path, checkpoint: Path) -> None:
    path = Path(write_config(tmp_path, checkpoint, grace_s=0.5))
    with make_daemon(str(path), *SLOW) as daemon, httpx.Client() as client:
        first = manager.next(lambda message: True)
        assert first == {"EXTEND_TIMEOUT_USEC": "610000000", "STATUS": "loading models"}
        ready = manager.next(lambda message: "READY" in message)
        assert ready["READY"] == "1"
        _, url = daemon.wait_ready()
        manager.next(lambda message: message.get("WATCHDOG") == "1")
        for process in psutil.Process(daemon.process.pid).children(recursive=True):
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & process.environ().keys()

        events = open_stream(client, url, 200)
        manager.next_status("chat 1 running")
        del events
        text = path.read_text()
        path.write_text("nonsense")
        daemon.signal(signal.SIGHUP)
        manager.next_status("; the changed file was refused")
        path.write_text(text)
        daemon.signal(signal.SIGHUP)
        daemon.wait_log("tiers_reloaded")

        daemon.signal(signal.SIGTERM)
        stopping = manager.next(lambda message: "STOPPING" in message)
        assert stopping["EXTEND_TIMEOUT_USEC"] == "17500000"
        assert stopping["STATUS"].startswith("draining: ")
        assert daemon.wait() == 0


@pytest.mark.parametrize(
    ("options", "is_frozen"),
    [(SLOW, True), (ONE_TOKEN, False)],
)
def test_an_engine_that_completes_no_step_is_no_sign_of_life(
    manager: Manager, tmp_path: Path, checkpoint: Path, options: tuple[str, ...], is_frozen: bool
) -> None:
    path = Path(write_config(tmp_path, checkpoint))
    # The daemon's own watch would be first.
    path.write_text(path.read_text().replace("heartbeat_s: 2", "heartbeat_s: 3600"))
    with make_daemon(str(path), *options) as daemon, httpx.Client() as client:
        _, url = daemon.wait_ready()
        events = open_stream(client, url, 200)
        if is_frozen:
            daemon.engine.suspend()
        manager.next_status("; no step completes")
        daemon.wait_log("engine_stalled")
        assert_no_sign_of_life(manager)
        del events
        dump_on_abort(daemon)


def assert_no_sign_of_life(manager: Manager) -> None:
    manager.socket.settimeout(1.5)
    with contextlib.suppress(TimeoutError):
        manager.next(lambda message: "WATCHDOG" in message)
        raise AssertionError("the daemon claims to be well")


def dump_on_abort(daemon: DaemonProcess) -> None:
    """What systemd sends when it has waited long enough: the log tells where the front was."""
    daemon.signal(signal.SIGABRT)
    assert daemon.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log
    assert "most recent call first" in daemon.log
