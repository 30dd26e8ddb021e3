"""The daemon's memory while very many requests come and go."""

import time
from dataclasses import dataclass

from api_client import LoadGenerator, Shape, Wire
from api_processes import Server
from machine import say

NUM_TOKENS = 8
INTERVAL_US = 1000
NUM_STREAMS = 64
NUM_SAMPLES = 20
SETTLED_SHARE = 0.3
"""Of the requests: by then records of the newest requests, which are kept, are full."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes over the number of requests that have ended."""

    samples: tuple[tuple[int, int], ...]
    requests_per_s: float

    @property
    def growth_bytes(self) -> int:
        """From where it has settled to the end: the mean of the last samples less the first."""
        total = self.samples[-1][0]
        settled = [rss for ended, rss in self.samples if ended >= SETTLED_SHARE * total]
        part = max(1, len(settled) // 4)
        return round((sum(settled[-part:]) - sum(settled[:part])) / part)


def watch_memory(server: Server, num_requests: int, num_connections: int) -> Memory:
    """Half of the requests over each wire, both in turn."""
    samples = [(0, server.rss_bytes())]
    began_s = time.perf_counter()
    num_done = 0
    portion = max(NUM_STREAMS, num_requests // NUM_SAMPLES)
    wires: tuple[Wire, Wire] = ("grpc", "http")
    while num_done < num_requests:
        wire = wires[len(samples) % 2]
        size = min(portion, num_requests - num_done)
        shape = Shape(NUM_TOKENS, INTERVAL_US)
        with LoadGenerator(
            wire, server.addresses[wire], shape, min(NUM_STREAMS, size), num_connections
        ) as load:
            load.complete(size)
        num_done += size
        samples.append((num_done, server.rss_bytes()))
        say(f"{num_done} requests: {samples[-1][1] / MIB:.1f} MiB")
    return Memory(tuple(samples), num_requests / (time.perf_counter() - began_s))
