"""How much of the cores other processes use: they disturb what is measured."""

import time
from contextlib import suppress

import psutil

QUIET_CORES = 0.15
"""Used by others, while what was measured still counts as undisturbed."""

_LOOK_S = 0.05


def await_quiet(patience_s: float) -> None:
    """Returns as soon as others leave the cores alone, or after so long."""
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        meter = OthersMeter()
        time.sleep(_LOOK_S)
        if meter.cores() <= QUIET_CORES:
            return


class OthersMeter:
    """From its making on; `mine` and their children are not others, nor is this process."""

    def __init__(self, *mine: int) -> None:
        self._mine = [psutil.Process(), *(psutil.Process(pid) for pid in mine)]
        self._start = self._read()

    def cores(self) -> float:
        """On average so far; time that the machine's host took from it counts as another's."""
        busy_s, mine_s, wall_s = (
            now - then for now, then in zip(self._read(), self._start, strict=True)
        )
        return max(0.0, busy_s - mine_s) / wall_s

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        return busy_s, sum(map(_used_s, self._mine)), time.monotonic()


def _used_s(process: psutil.Process) -> float:
    """Of a process and its children, those included that have ended."""
    total_s = 0.0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total_s += times.user + times.system
        times = process.cpu_times()
        total_s += times.children_user + times.children_system
    return total_s
