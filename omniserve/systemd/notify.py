"""The datagram socket over which systemd hears about a service."""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Self

_SOCKET_VARIABLE = "NOTIFY_SOCKET"
_WATCHDOG_VARIABLE = "WATCHDOG_USEC"
_WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"


@dataclass(frozen=True, slots=True)
class NotifySocket:
    """Where a service manager listens, and how often it wants to hear."""

    address: str
    """A path or, with @ before it, an abstract name."""
    watchdog_s: float | None = None
    """The service is restarted after so long without WATCHDOG=1; None: never."""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Self | None:
        """What the service manager says; None where there is none.

        Its variables are removed: children are not the service, and must not speak for it.
        """
        address = environment.pop(_SOCKET_VARIABLE, "")
        watchdog_us = environment.pop(_WATCHDOG_VARIABLE, "")
        pid = environment.pop(_WATCHDOG_PID_VARIABLE, "") or str(os.getpid())
        if not address.startswith(("/", "@")) or len(address) < 2:
            return None
        is_watched = watchdog_us.isascii() and watchdog_us.isdigit() and pid == str(os.getpid())
        watchdog_s = int(watchdog_us) / 1e6 if is_watched else 0.0
        return cls(address, watchdog_s or None)

    def send(self, **variables: str | int) -> bool:
        """Whether the manager got this; it never waits for one that does not read."""
        lines = (f"{name}={_one_line(str(value))}" for name, value in variables.items())
        is_abstract = self.address.startswith("@")
        address = f"\0{self.address[1:]}" if is_abstract else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            with contextlib.suppress(OSError):
                sender.sendto("\n".join(lines).encode(errors="replace"), address)
                return True
        return False


def _one_line(value: str) -> str:
    """A line break would begin another variable."""
    return " ".join(value.split())
