"""Which cores compute for whom: what a comparison calls the device, and what the host."""

import os
from dataclasses import dataclass

from omniserve.errors import ConfigError

EMULATED, WHOLE = "emulated", "whole"
FRAME_NAMES = (EMULATED, WHOLE)


@dataclass(frozen=True, slots=True)
class Frame:
    """Cores of the device and of everything else; the same for every contender."""

    name: str
    device_cores: tuple[int, ...]
    """Compute threads of models run on these."""
    host_cores: tuple[int, ...]
    """Fronts, API servers, schedulers in processes of their own, host attention, the load."""

    @property
    def is_emulated(self) -> bool:
        """Whether device and host are told apart, so that processes are pinned."""
        return self.name == EMULATED

    @property
    def host_threads(self) -> int:
        """Cores that attend on the host; one is left to fronts and load where there is one."""
        cores = self.host_cores if self.is_emulated else self.host_cores[1:]
        return max(1, len(cores) - 1)

    @property
    def text(self) -> str:
        if not self.is_emulated:
            return f"whole machine: every contender may use all {len(self.device_cores)} cores"
        return (
            f"emulated accelerator: cores {show_cores(self.device_cores)} play the device for "
            f"every contender, cores {show_cores(self.host_cores)} are the host"
        )


def frame(name: str, cores: tuple[int, ...] | None = None) -> Frame:
    """The frame of that name on these cores, by default all that this process may use.

    Raises ConfigError where the cores are too few.
    """
    cores = tuple(sorted(os.sched_getaffinity(0))) if cores is None else cores
    if len(cores) < 2:
        raise ConfigError(f"this process may use {len(cores)} core; a comparison needs 2 or more")
    if name == WHOLE:
        return Frame(name, cores, cores)
    middle = len(cores) // 2
    return Frame(name, cores[:middle], cores[middle:])


def show_cores(cores: tuple[int, ...]) -> str:
    """`0,2,3`, as OpenMP bindings and people read them."""
    return ",".join(map(str, cores))
