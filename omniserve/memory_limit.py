"""Memory that the kernel lets this process have; needs the standard library only."""

from collections.abc import Iterator
from pathlib import Path

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def available_bytes(memory: Path = _MEMORY) -> int:
    """What can be had now without swapping; no more than the control groups' limit."""
    lines = dict(line.split(":", 1) for line in memory.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) << 10
    limit = memory_limit_bytes()
    return available if limit is None else min(available, limit)


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
