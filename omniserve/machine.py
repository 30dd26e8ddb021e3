"""What this machine leaves to the process: cores and memory."""

from dataclasses import dataclass

import psutil

from omniserve.memory_limit import available_bytes, memory_limit_bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores and memory that a process may use."""

    num_cores: int
    memory_bytes: int
    """The machine's memory, or the limit of the process's control group where that is lower."""
    available_bytes: int
    """Of it, what can be had now without swapping, beside what the control group has already."""


def this_machine() -> Machine:
    """What this process may use now."""
    total_bytes = psutil.virtual_memory().total
    limit_bytes = memory_limit_bytes()
    return Machine(
        num_cores=len(psutil.Process().cpu_affinity()),
        memory_bytes=total_bytes if limit_bytes is None else min(total_bytes, limit_bytes),
        available_bytes=available_bytes(),
    )
