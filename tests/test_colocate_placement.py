"""Servers that are started with a share of the machine."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from omniserve.bench.colocate.placement import ANYWHERE, LEAST_NICE, Placement
from omniserve.bench.colocate.processes import ServerProcess
from omniserve.bench.colocate.waiting import poll

PATIENCE_S = 180.0
"""Those that come last of all who want a core start late."""
# Of itself, and of what it starts.
SAY = """
import os, subprocess, sys
print(sorted(os.sched_getaffinity(0)), os.nice(0), flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, *sys.orig_argv[1:], "child"])
import time; time.sleep(600)
"""


async def said_by(directory: Path, placement: Placement) -> tuple[list[str], str | None]:
    """What it says of its cores and its niceness, and what the kernel does of its group."""
    process = await ServerProcess.start(
        "placed",
        (sys.executable, "-c", SAY),
        os.environ,
        directory / "log",
        directory,
        placement,
    )
    try:
        await poll(process, lambda: process.log.count("\n") == 2, PATIENCE_S)
        group = Path(f"/proc/{process.tree()[0].pid}/autogroup")
        return process.log.splitlines(), group.read_text() if group.exists() else None
    finally:
        await process.stop()


def test_cores_and_priority_are_those_of_all_that_it_starts(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    lines, group = asyncio.run(said_by(tmp_path, Placement((core,), LEAST_NICE)))
    assert lines == [f"[{core}] {LEAST_NICE}"] * 2
    assert group is None or group.endswith(f"nice {LEAST_NICE}\n")


def test_a_kernel_that_is_told_too_often_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where several servers are started at one time."""
    told: list[tuple[str, str]] = []

    def write(path: Path, text: str) -> int:
        told.append((str(path), text))
        if len(told) < 3:
            raise BlockingIOError
        return len(text)

    monkeypatch.setattr(Path, "write_text", write)
    asyncio.run(Placement(nice=LEAST_NICE).tell_autogroup(7))
    assert told == [("/proc/7/autogroup", str(LEAST_NICE))] * 3
    asyncio.run(ANYWHERE.tell_autogroup(7))
    assert len(told) == 3


@pytest.mark.parametrize("placement", [ANYWHERE, Placement(nice=0)])
def test_nothing_said_changes_nothing(tmp_path: Path, placement: Placement) -> None:
    lines, _ = asyncio.run(said_by(tmp_path, placement))
    assert lines == [f"{sorted(os.sched_getaffinity(0))} {os.nice(0)}"] * 2
