"""Models, requests and answers for tests of host attention."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import naive_paged_attention as naive
import numpy as np
from numpy.typing import NDArray

from cpu_attn.element import Element
from cpu_attn.host.attention import HostAttention
from cpu_attn.host.books import TaskBooks
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel, HostSettings
from cpu_attn.host.slots import NO_BLOCK, ModelMemory, RingMemory

_PATIENCE_S = 120.0
CORES = tuple(sorted(os.sched_getaffinity(0))[:2])


def make_model(pool: HostKvPool, **fields: Any) -> HostModel:
    layout = pool.layout
    values: dict[str, Any] = {
        "num_heads": 2 * layout.num_kv_heads,
        "io": Element.FLOAT32 if layout.element is Element.INT8 else layout.element,
        "max_context_len": 256,
        "scale": layout.head_dim**-0.5,
    }
    return HostModel(pool.memory, **(values | fields))


def make_settings(**fields: Any) -> HostSettings:
    values: dict[str, Any] = {"cores": CORES, "num_slots": 16}
    return HostSettings(**(values | fields))


def open_books(
    models: list[HostModel],
    num_slots: int,
    ring: RingMemory,
    memories: list[ModelMemory],
    num_workers: int,
) -> TaskBooks:
    """Books of models that are all open; in block tables that nobody wrote all entries are 0."""
    books = TaskBooks(num_slots, ring, num_workers)
    for index, (model, memory) in enumerate(zip(models, memories, strict=True)):
        tables = memory.slots.block_tables
        tables[tables == NO_BLOCK] = 0
        books.add_model(index, model, memory.slots)
        books.set_open(index, True)
    return books


@contextmanager
def running(models: list[HostModel], **fields: Any) -> Iterator[HostAttention]:
    host = HostAttention(models, make_settings(**fields))
    try:
        host.start()
        yield host
    finally:
        host.close()


class Request:
    """One request in one slot: its blocks, its contents by layer in float64, and its oracle."""

    def __init__(
        self, host: HostAttention, pool: HostKvPool, model: HostModel, index: int, slot: int
    ) -> None:
        self.pool, self.model, self.index, self.slot = pool, model, index, slot
        self.block_ids = pool.allocate(model.max_blocks)
        host.set_block_table(index, slot, self.block_ids)
        self.arrays = host.slots[index]
        self.lengths = [0] * pool.layout.num_layers

    def prefill(self, layer: int, length: int, rng: np.random.Generator) -> None:
        """Writes `length` random tokens to the pool."""
        layout = self.pool.layout
        for position in range(length):
            rows = rng.normal(size=(2, layout.num_kv_heads, layout.head_dim))
            k, v = _as_pool_takes(rows, layout.element)
            self.pool.append(self.block_ids, layer, position, k, v)
        self.lengths[layer] = length

    def write(self, layer: int, q_len: int, rng: np.random.Generator) -> int:
        """New random query tokens into the slot's rows; the context length with them."""
        for rows in (self.arrays.q, self.arrays.k, self.arrays.v):
            values = rng.normal(size=rows.shape[1:])
            rows[self.slot] = naive.encode(values, self.model.io)
        self.arrays.out[self.slot] = 0
        self.lengths[layer] += q_len
        return self.lengths[layer]

    def expected(self, layer: int, q_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Output and log-sum-exp of the last written tokens, from what the pool now holds."""
        window = self.model.windows[layer] if self.model.windows else None
        sinks = None if self.model.sinks is None else np.array(self.model.sinks[layer], np.float32)
        pages = self.pool.copy_out(self.block_ids)[layer]
        kind = self.pool.layout.element
        cache = naive.decode(pages, Element.FLOAT32 if kind is Element.INT8 else kind)
        q = naive.decode(self.arrays.q[self.slot : self.slot + 1, :q_len], self.model.io)
        out, lse = naive.attend(
            q,
            cache,
            np.arange(len(self.block_ids))[None],
            np.array([self.lengths[layer]]),
            scale=self.model.scale,
            window=window,
            sink_tokens=self.model.sink_tokens,
            sinks=sinks,
        )
        return out[0], lse[0]

    def check(self, layer: int, q_len: int) -> None:
        """The slot's result is right, and its keys and values were appended."""
        layout = self.pool.layout
        first = self.lengths[layer] - q_len
        pages = self.pool.copy_out(self.block_ids)[layer]
        if layout.element is self.model.io:
            for half, rows in enumerate((self.arrays.k, self.arrays.v)):
                for token in range(q_len):
                    block, place = divmod(first + token, layout.block_size)
                    stored = pages[block, half, :, place]
                    np.testing.assert_array_equal(stored, rows[self.slot, token])
        out, lse = self.expected(layer, q_len)
        got = naive.decode(self.arrays.out[self.slot, :q_len], self.model.io)
        tolerance = 1e-5 if self.model.io is Element.FLOAT32 else 1e-2
        np.testing.assert_allclose(got, out, rtol=0, atol=tolerance)
        got_lse = self.arrays.lse[self.slot].ravel()[: lse.size].reshape(lse.shape)
        np.testing.assert_allclose(got_lse, lse, rtol=0, atol=1e-4)


def _as_pool_takes(rows: NDArray[Any], element: Element) -> NDArray[Any]:
    return naive.encode(rows, Element.FLOAT32 if element is Element.INT8 else element)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def thread_states(pid: int) -> set[str]:
    """Letters as in /proc of what the threads of a process are doing."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat[stat.rindex(")") + 2] for stat in stats}


def collect(host: HostAttention, count: int) -> list[tuple[int, int, int]]:
    """(model, slot, status) of `count` results, sorted; all must be of different slots."""
    rows: list[tuple[int, int, int]] = []

    def enough() -> bool:
        results = host.collect()
        rows.extend(
            zip(results.model.tolist(), results.slot.tolist(), results.status.tolist(), strict=True)
        )
        return len(rows) >= count

    until(enough)
    assert len(rows) == count == len({row[:2] for row in rows})
    return sorted(rows)


def make_requests(
    host: HostAttention, pool: HostKvPool, model: HostModel, num: int, rng: np.random.Generator
) -> list[Request]:
    """With 40 tokens and more in every layer, and new ones written to their slots."""
    requests = [Request(host, pool, model, 0, slot) for slot in range(num)]
    for request in requests:
        request.prefill(0, 40 + request.slot, rng)
        request.write(0, 1, rng)
    return requests


def submit_all(host: HostAttention, requests: list[Request]) -> None:
    slots = np.array([request.slot for request in requests])
    host.submit_many(0, slots, 0, np.array([request.lengths[0] for request in requests]))


def free_blocks(pool: HostKvPool, requests: list[Request]) -> None:
    for request in requests:
        pool.free(request.block_ids)
