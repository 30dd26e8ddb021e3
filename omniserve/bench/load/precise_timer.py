"""A timer that is precise to tens of microseconds; asyncio's own wake at whole milliseconds."""

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_NS_PER_S = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


class PreciseTimer:
    """Calls back in the event loop at a time of `time.monotonic`. Linux's timerfd."""

    def __init__(self, callback: Callable[[], None]) -> None:
        """Made inside a running event loop; raises OSError."""
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._fd = _checked(
            _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC), "timerfd_create"
        )
        self._loop.add_reader(self._fd, self._ring)

    def arm(self, at_s: float) -> None:
        """Once at `at_s`, at once if that is past; an earlier arming is forgotten."""
        # Zero would disarm it.
        seconds, nanoseconds = divmod(max(1, round(at_s * _NS_PER_S)), _NS_PER_S)
        spec = _TimerSpec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        set_time = _libc.timerfd_settime
        _checked(set_time(self._fd, _ABSOLUTE, ctypes.byref(spec), None), "timerfd_settime")

    def close(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            # Armed anew since it expired.
            return
        self._callback()


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
