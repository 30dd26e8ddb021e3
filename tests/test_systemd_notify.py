"""Messages to a service manager, over real datagram sockets."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omniserve.systemd.notify import NotifySocket


@contextmanager
def listening(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        yield manager


def test_a_path_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with listening(path) as manager:
        assert NotifySocket(path).send(READY=1, STATUS="serving")
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving"


def test_an_abstract_socket_is_told() -> None:
    name = f"omniserve-test-{uuid.uuid4()}"
    with listening(f"\0{name}") as manager:
        assert NotifySocket(f"@{name}").send(WATCHDOG=1)
        assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_value_cannot_begin_another_variable(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with listening(path) as manager:
        assert NotifySocket(path).send(STATUS="broken\nMAINPID=1\r\udcff")
        assert manager.recv(4096) == b"STATUS=broken MAINPID=1 ?"


def test_nobody_there_is_no_error(tmp_path: Path) -> None:
    assert not NotifySocket(str(tmp_path / "nowhere")).send(READY=1)


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with listening(path):
        told = NotifySocket(path)
        sent = [told.send(STATUS="x" * 4096) for _ in range(2000)]
    assert sent[0]
    assert not sent[-1]


def test_the_environment_is_taken_and_not_passed_on() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "90000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert NotifySocket.taken_from(environment) == NotifySocket("/run/notify", 90.0)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "@"}, None),
        ({"NOTIFY_SOCKET": "relative"}, None),
        ({"WATCHDOG_USEC": "1000000"}, None),
        ({"NOTIFY_SOCKET": "@name"}, NotifySocket("@name")),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "4000000"}, NotifySocket("/n", 4.0)),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, NotifySocket("/n")),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, NotifySocket("/n")),
        # Meant for the process that started this one.
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}, NotifySocket("/n")),
    ],
)
def test_what_the_environment_says(
    variables: dict[str, str], expected: NotifySocket | None
) -> None:
    assert NotifySocket.taken_from(variables) == expected
    assert variables == {}
