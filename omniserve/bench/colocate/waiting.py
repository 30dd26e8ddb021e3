"""Waits for servers: until they are ready, and until they rest."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from omniserve.bench.colocate.pinning import used_seconds
from omniserve.bench.colocate.processes import ServerProcess

POLL_S = 0.25
QUIET_S = 0.75
QUIET_CORES = 0.1
"""Every server uses less than this when it has no work."""
REST_S = 60.0

T = TypeVar("T")


async def poll(process: ServerProcess, look: Callable[[], T | None], limit_s: float) -> T:
    """What `look` finds as soon as it is true. Raises ServerFailed: ended, or took too long."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        process.check()
        found = await asyncio.to_thread(look)
        if found:
            return found
        await asyncio.sleep(POLL_S)
    raise process.failure(f"was not ready after {limit_s:.0f} s")


async def rest(processes: Sequence[ServerProcess]) -> None:
    """Until nobody computes. Raises ServerFailed where somebody has ended or does not stop."""
    end_s = time.monotonic() + REST_S
    while True:
        for process in processes:
            process.check()
        busiest, cores = await _busiest(processes)
        if cores < QUIET_CORES:
            return
        if time.monotonic() > end_s:
            raise busiest.failure(f"still used {cores:.2f} cores {REST_S:.0f} s after its load")


async def _busiest(processes: Sequence[ServerProcess]) -> tuple[ServerProcess, float]:
    trees = [process.tree() for process in processes]
    before = [used_seconds(tree) for tree in trees]
    start_s = time.monotonic()
    await asyncio.sleep(QUIET_S)
    elapsed_s = time.monotonic() - start_s
    cores = [
        (used_seconds(tree) - used_s) / elapsed_s
        for tree, used_s in zip(trees, before, strict=True)
    ]
    worst = max(range(len(cores)), key=cores.__getitem__)
    return processes[worst], cores[worst]
