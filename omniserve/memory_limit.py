"""Memory that the kernel lets this process have; needs the standard library only."""

from collections.abc import Iterator
from pathlib import Path

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def available_bytes(
    memory: Path = _MEMORY,
    process_groups: Path = _PROCESS_GROUPS,
    group_root: Path = _GROUP_ROOT,
) -> int:
    """What can be had now without swapping: of the machine, and within the limit of every control
    group (version 2) around the process, less what that group has already."""
    available = _numbers(memory)["MemAvailable:"] << 10
    rooms = (_room_bytes(group) for group in _groups(process_groups, group_root))
    return min([available, *(room for room in rooms if room is not None)])


def memory_limit_bytes(
    process_groups: Path = _PROCESS_GROUPS, group_root: Path = _GROUP_ROOT
) -> int | None:
    """The lowest limit of the process's control groups (version 2), in use or not; None without
    one."""
    limits = (_limit_bytes(group) for group in _groups(process_groups, group_root))
    return min((limit for limit in limits if limit is not None), default=None)


def _room_bytes(group: Path) -> int | None:
    """Below a group's limit; None without one."""
    limit = _limit_bytes(group)
    if limit is None:
        return None
    try:
        used = int((group / "memory.current").read_text())
        # Pages of files, a checkpoint's that was read among them, go before anyone is killed.
        books = _numbers(group / "memory.stat")
        droppable = books.get("inactive_file", 0) + books.get("active_file", 0)
    except (OSError, ValueError):
        # Without its books no more than the limit is known.
        return limit
    return min(max(limit - used + droppable, 0), limit)


def _limit_bytes(group: Path) -> int | None:
    try:
        return int((group / "memory.max").read_text())
    except (OSError, ValueError):
        # The root has no such file, and "max" is no limit.
        return None


def _numbers(file: Path) -> dict[str, int]:
    """Of lines that begin with a name and a number."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}


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
