"""Keeping torch's threads apart from each other while another thread computes beside them."""

import ctypes
import os
import threading
from contextlib import suppress

from omniserve.devices.openmp_team import OpenMpTeam


class ThreadPins:
    """Of the thread that makes them, which is the one that computes, and of its team.

    Beside a team that has all cores, one thread more may have the kernel put two of the team on
    one core, and take a tenth of a second to part them again: until then each waits for the other
    at every operator, and the third one has a core to itself. A thread that is held to its core
    cannot be put elsewhere.

    What is started meanwhile by the thread that computes is held to its core as well.
    """

    def __init__(self, team: OpenMpTeam | None = None) -> None:
        self._team = team or OpenMpTeam()
        self._held: tuple[int, ...] = ()
        self._cores: set[int] = set()

    def update(self, *, is_wanted: bool) -> None:
        """Makes it so, where it is not so yet and makes a difference."""
        if is_wanted and not self._held:
            self._hold()
        elif self._held and not is_wanted:
            self._let_go()

    def _hold(self) -> None:
        self._cores = os.sched_getaffinity(0)
        threads = team_threads(self._team)
        if len(threads) != len(self._cores) or len(threads) == 1:
            # With a core to spare the third one goes there.
            return
        self._held = threads
        for thread, core in zip(threads, sorted(self._cores), strict=True):
            _move(thread, {core})

    def _let_go(self) -> None:
        for thread in self._held:
            _move(thread, self._cores)
        self._held = ()


def team_threads(team: OpenMpTeam) -> tuple[int, ...]:
    """As the kernel numbers them; the calling thread comes first."""
    found = [threading.get_native_id()]

    def note(_: object) -> None:
        found.append(threading.get_native_id())

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(note)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    team.run(address, 0)
    return tuple(dict.fromkeys(found))


def _move(thread: int, cores: set[int]) -> None:
    # It may have ended meanwhile.
    with suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cores)
