"""What this machine leaves to the process: cores and memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")


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


def memory_limit_bytes(
    process_groups: Path = _PROCESS_GROUPS, group_root: Path = _GROUP_ROOT
) -> int | None:
    """The lowest limit of the process's control groups (version 2), None without one."""
    limits = []
    for group in _groups(process_groups, group_root):
        try:
            limits.append(int((group / "memory.max").read_text()))
        except (OSError, ValueError):
            # The root has no such file, and "max" is no limit.
            continue
    return min(limits, default=None)


def _groups(process_groups: Path, group_root: Path) -> Iterator[Path]:
    """The process's own group, and all around it: each of them limits."""
    try:
        lines = process_groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            own = Path(line.removeprefix("0::/"))
            yield from (group_root / group for group in (own, *own.parents))
