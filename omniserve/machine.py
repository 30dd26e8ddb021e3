"""What this machine leaves to the process: cores and memory."""

from dataclasses import dataclass

import psutil

from omniserve.memory_limit import memory_limit_bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores and memory that a process may use."""

    num_cores: int
    memory_bytes: int
    """The machine's memory, or the limit of the process's control group where that is lower."""
    available_bytes: int
    """Of it, what can be had now without swapping."""


def this_machine() -> Machine:
    """What this process may use now."""
    memory = psutil.virtual_memory()
    limit_bytes = memory_limit_bytes()
    if limit_bytes is None:
        limit_bytes = memory.total
    return Machine(
        num_cores=len(psutil.Process().cpu_affinity()),
        memory_bytes=min(memory.total, limit_bytes),
        available_bytes=min(memory.available, limit_bytes),
    )
