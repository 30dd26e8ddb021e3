"""How busy the machine is: cores and memory."""

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from omniserve.machine import this_machine


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds that all cores together have spent since the machine started."""

    total_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class HostUsage:
    """Cores and memory that this process may use, and how much of them is in use by anybody."""

    num_cores: int
    busy_share: float
    """Of the cores, since the measurement before; 0 at the first."""
    memory_used_bytes: int
    memory_total_bytes: int


class HostMeter:
    """Measures from one call to the next."""

    def __init__(self, read_cores: Callable[[], CoreTimes] | None = None) -> None:
        """`read_cores` tells the times so far; by default the kernel's, of this process's cores."""
        self._cores = tuple(psutil.Process().cpu_affinity())
        self._read_cores = read_cores or self._core_times
        self._before = self._read_cores()

    def measure(self) -> HostUsage:
        now, before = self._read_cores(), self._before
        self._before = now
        passed_s = now.total_s - before.total_s
        idle_share = (now.idle_s - before.idle_s) / passed_s if passed_s > 0 else 1.0
        machine = this_machine()
        return HostUsage(
            num_cores=len(self._cores),
            # The kernel's counters are not read at one moment; they may seem to go backwards.
            busy_share=min(1.0, max(0.0, 1.0 - idle_share)),
            memory_used_bytes=machine.memory_bytes - machine.available_bytes,
            memory_total_bytes=machine.memory_bytes,
        )

    def _core_times(self) -> CoreTimes:
        every = psutil.cpu_times(percpu=True)
        mine = [every[core] for core in self._cores if core < len(every)]
        # guest time is part of user time already.
        total_s = sum(sum(times[:8]) for times in mine)
        return CoreTimes(total_s, sum(times.idle + times.iowait for times in mine))
