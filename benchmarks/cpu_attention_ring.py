"""The host attention process: round trips, wakes, idle cost and bandwidth of one worker."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from cpu_attention_case import AttentionCase, Noise, huge_memory
from cpu_attention_ours import OurAttention, PagedCache
from read_probe import TeamReader

from cpu_attn.bfloat16 import to_bfloat16
from cpu_attn.element import Element
from cpu_attn.host.attention import HostAttention
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel, HostSettings, PoolMemory
from cpu_attn.kernel_variant import Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.thread_team import ThreadTeam

KV_HEADS, GROUP_SIZE, HEAD_DIM, BLOCK_SIZE, NUM_LAYERS = 8, 4, 128, 64, 4
SHORT_CONTEXT, LONG_CONTEXT = 100, 4096
NUM_LONG = 4
"""Long requests; a task for each and then the next layer: 64 MiB a layer, 256 MiB together."""
READ_BYTES = 256 << 20
SLEEP_S = 0.05
"""Longer than workers poll."""
IDLE_S = 2.0
TIMEOUT_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class RingResult:
    """Seconds of each sample."""

    round_trips: list[float]
    kernels: list[float]
    """The same attention in this process, without a ring; nothing is appended."""
    wakes: list[float]
    idle_cores: float
    read_bytes_per_s: list[float]
    kv_bytes_per_s: list[float]

    def table(self) -> str:
        fractions = [
            kv / read for kv, read in zip(self.kv_bytes_per_s, self.read_bytes_per_s, strict=True)
        ]
        rows = [
            ("round trip, worker awake, us", *_percentiles(self.round_trips, 1e6)),
            ("its attention alone, in this process, us", *_percentiles(self.kernels, 1e6)),
            ("first task of a sleeping worker, us", *_percentiles(self.wakes, 1e6)),
            ("KV read by one worker, GB/s", *_percentiles(self.kv_bytes_per_s, 1e-9)),
            ("of the read probe on its core", *_percentiles(fractions, 1.0)),
        ]
        lines = ["| | median | middle half | 99 % |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append(f"| idle, cores | {self.idle_cores:.4f} | | |")
        return "\n".join(lines)


def _percentiles(samples: Sequence[float], factor: float) -> tuple[str, str, str]:
    scaled = [factor * sample for sample in samples]
    low, _, high = quantiles(scaled, n=4, method="inclusive")
    last = quantiles(scaled, n=100, method="inclusive")[-1]
    return f"{median(scaled):.2f}", f"{low:.2f}..{high:.2f}", f"{last:.2f}"


class RingBench:
    """A host attention process with one worker, and this process on another core."""

    def __init__(self, worker_core: int) -> None:
        self._core = worker_core
        layout = KvLayout(Element.BFLOAT16, NUM_LAYERS, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        blocks_per_request = LONG_CONTEXT // BLOCK_SIZE
        num_blocks = (NUM_LONG + 1) * blocks_per_request
        self._pool = HostKvPool(layout, num_blocks * layout.block_bytes)
        memory = PoolMemory(self._pool.fd, layout, self._pool.num_blocks)
        model = HostModel(
            pool=memory,
            num_heads=KV_HEADS * GROUP_SIZE,
            io=Element.BFLOAT16,
            max_context_len=LONG_CONTEXT,
            scale=HEAD_DIM**-0.5,
        )
        self.host = HostAttention([model], HostSettings(cores=(worker_core,), num_slots=8))
        self._layout = layout
        self._fill(blocks_per_request)

    def _fill(self, blocks_per_request: int) -> None:
        """Slot 0 is the short request, the long ones follow; all their blocks in random order."""
        noise = Noise(seed=6)
        layout = self._layout
        blocks = self._pool.allocate(self._pool.num_blocks)
        order = np.random.default_rng(7).permutation(blocks)
        for block in blocks:
            page = noise.take(layout.num_layers, 1, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
            self._pool.copy_in([block], to_bfloat16(page))
        for slot, table in enumerate(order.reshape(-1, blocks_per_request)):
            self.host.set_block_table(0, slot, table)
        for payload in (self.host.slots[0].q, self.host.slots[0].k, self.host.slots[0].v):
            payload[:] = to_bfloat16(noise.take(*payload.shape))

    def task(self, slots: Sequence[int], layer: int, context_len: int) -> float:
        """Seconds from publishing tasks to the last one's result."""
        start = time.perf_counter()
        self.host.submit_many(0, slots, layer, context_len)
        left = len(slots)
        while left:
            left -= len(self.host.collect())
            if time.perf_counter() - start > TIMEOUT_S:
                raise TimeoutError(f"{left} tasks without a result after {TIMEOUT_S} s")
        return time.perf_counter() - start

    def round_trips(self, count: int) -> list[float]:
        for layer in range(NUM_LAYERS):
            self.task([0], layer, SHORT_CONTEXT)
        return [self.task([0], index % NUM_LAYERS, SHORT_CONTEXT) for index in range(count)]

    def wakes(self, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            time.sleep(SLEEP_S)
            seconds.append(self.task([0], 0, SHORT_CONTEXT))
        return seconds

    def idle_cores(self) -> float:
        time.sleep(SLEEP_S)
        before = self._cpu_seconds()
        time.sleep(IDLE_S)
        return (self._cpu_seconds() - before) / IDLE_S

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.host.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def bandwidths(self, rounds: int) -> tuple[list[float], list[float]]:
        """Bytes a second of a read probe on the worker's core, and of the worker's KV."""
        slots = range(1, NUM_LONG + 1)
        token_bytes = self._layout.bytes_per_token
        reads, speeds = [], []
        with ThreadTeam(1) as team:
            memory = huge_memory(READ_BYTES, in_memfd=True)
            memory[:] = 1
            reader = TeamReader(memory, team)
            for _ in range(rounds):
                time.sleep(SLEEP_S)
                with _pinned({self._core}):
                    start = time.perf_counter()
                    reader.run()
                    reads.append(READ_BYTES / (time.perf_counter() - start))
                self.task([0], 0, SHORT_CONTEXT)
                seconds = sum(self.task(slots, layer, LONG_CONTEXT) for layer in range(NUM_LAYERS))
                speeds.append(NUM_LONG * LONG_CONTEXT * token_bytes / seconds)
        return reads, speeds

    def kernels(self, count: int) -> list[float]:
        """Seconds of the attention of a round trip, called here; keys and values in caches too."""
        case = AttentionCase(
            kv="bfloat16",
            block_size=BLOCK_SIZE,
            num_threads=1,
            num_kv_heads=KV_HEADS,
            group_size=GROUP_SIZE,
            head_dim=HEAD_DIM,
            num_sequences=1,
            context_len=SHORT_CONTEXT,
        )
        with ThreadTeam(1) as team:
            cache = PagedCache(case, in_memfd=False)
            attention = OurAttention(case, cache, Products.EXACT, team)
            attention.run()
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                attention.run()
                seconds.append(time.perf_counter() - start)
        return seconds

    def close(self) -> None:
        self.host.close()
        self._pool.close()


@contextmanager
def _pinned(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_ring(*, quick: bool) -> RingResult:
    """Needs two cores: the last one for the worker, the first for this process."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ValueError("the ring is measured between two cores, and there is one")
    bench = RingBench(cores[-1])
    try:
        bench.host.start()
        with _pinned({cores[0]}):
            reads, speeds = bench.bandwidths(7 if quick else 21)
            return RingResult(
                round_trips=bench.round_trips(2_000 if quick else 20_000),
                kernels=bench.kernels(2_000 if quick else 20_000),
                wakes=bench.wakes(20 if quick else 100),
                idle_cores=bench.idle_cores(),
                read_bytes_per_s=reads,
                kv_bytes_per_s=speeds,
            )
    finally:
        bench.close()


def describe_ring() -> str:
    """What the table's rows were measured with."""
    return (
        f"bfloat16 KV and queries, {KV_HEADS} KV heads, {GROUP_SIZE} heads each, head dim "
        f"{HEAD_DIM}, block {BLOCK_SIZE}, one worker; round trips at context {SHORT_CONTEXT}, from "
        f"before submit to after collect in Python; bandwidth: {NUM_LONG} requests at context "
        f"{LONG_CONTEXT}, {NUM_LAYERS} layers one after the other."
    )
