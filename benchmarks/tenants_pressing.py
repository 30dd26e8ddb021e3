"""The tenant that presses, in a process of its own: whoever measures is not held up by it.

It has the lowest priority, as it would be on another machine: what refusing costs the daemon is
felt by the measured tenant, what asking costs the client is not.

Reads one JSON line on stdin: address, token, num_workers, tries_per_s, work, seed. Says `pressing`
once it has an answer; at the end of stdin it stops and prints what it counted.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tenants_load import RequestRefused, Tenant, Work

START_S = 180.0
"""At the lowest priority, also where others want every core."""


@dataclass(slots=True)
class Counts:
    num_done: int = 0
    num_refused: int = 0


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a tenant does: so many workers ask again and again."""

    address: str
    token: str
    num_workers: int
    tries_per_s: float
    """Of all workers that are refused."""
    work: Work
    seed: int


async def press(pressure: Pressure) -> Counts:
    tenant = Tenant(pressure.address, pressure.token, pressure.work, pressure.seed)
    counts = Counts()
    pause_s = pressure.num_workers / pressure.tries_per_s

    async def ask_again_and_again(number: int) -> None:
        await asyncio.sleep(pause_s * number / pressure.num_workers)
        while True:
            try:
                await tenant.ask()
                counts.num_done += 1
            except RequestRefused:
                counts.num_refused += 1
                await asyncio.sleep(pause_s)

    await tenant.ask()
    print("pressing", flush=True)
    try:
        async with asyncio.TaskGroup() as workers:
            tasks = [
                workers.create_task(ask_again_and_again(number))
                for number in range(pressure.num_workers)
            ]
            # Ended by whoever started it, or with it.
            await asyncio.to_thread(sys.stdin.read)
            for task in tasks:
                task.cancel()
    finally:
        await tenant.close()
    return counts


@asynccontextmanager
async def pressing(pressure: Pressure) -> AsyncIterator[Counts]:
    """A process that presses until the block ends; then the counts are filled in."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    counts = Counts()
    try:
        # Not as an argument, which everybody on the machine may read.
        process.stdin.write(json.dumps(asdict(pressure)).encode() + b"\n")
        async with asyncio.timeout(START_S):
            if await process.stdout.readline() != b"pressing\n":
                raise RuntimeError("the other tenant does not press")
        yield counts
        process.stdin.close()
        found = json.loads(await process.stdout.readline())
        counts.num_done, counts.num_refused = found["num_done"], found["num_refused"]
    finally:
        if process.returncode is None and not process.stdin.is_closing():
            process.kill()
        await process.wait()


def main() -> None:
    os.nice(19)
    given = json.loads(sys.stdin.readline())
    pressure = Pressure(**given | {"work": Work(**given["work"])})
    print(json.dumps(asdict(asyncio.run(press(pressure)))), flush=True)


if __name__ == "__main__":
    main()
