"""Decode attention over paged keys and values: one query token a sequence, grouped query heads.

Technique: tiles of vector IR read each KV block once, front to back, while the lines of the next
block are prefetched; softmax runs online, one block at a time (Milakov and Gimelshein, 2018).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import carray, types
from numpy.typing import NDArray

from cpu_attn._jit import c_callback
from cpu_attn.element import Element
from cpu_attn.memory import copy_bytes, load_f32, load_i32, store_f32, take_number
from cpu_attn.tiles import load_query, score_tile, softmax_row, store_output, weigh_values

# Fields of a task: int64 numbers that every thread of a team reads.
NEXT_ITEM = 0
NUM_SEQUENCES = 1
NUM_KV_HEADS = 2
WINDOW = 3
Q, Q_STRIDE = 4, 5
K, K_STRIDE = 6, 7
V, V_STRIDE = 8, 9
OUT, OUT_STRIDE = 10, 11
CACHE = 12
TABLES, TABLE_STRIDE = 13, 14
CONTEXT_LENS = 15
SCALE = 16
HEADS_PER_ITEM = 17
NUM_FIELDS = 18

_NO_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """What a kernel is compiled for."""

    element: Element
    group_size: int
    """Query heads of one KV head."""
    head_dim: int
    block_size: int

    def check(self) -> None:
        """Raises ValueError where no kernel can be made."""
        multiple = 32 if self.element is Element.BFLOAT16 else 16
        if self.head_dim % multiple or not multiple <= self.head_dim <= 256:
            raise ValueError(
                f"head_dim {self.head_dim}: a multiple of {multiple} up to 256 is needed"
            )
        if self.block_size % 16 or not 16 <= self.block_size <= 256:
            raise ValueError(f"block_size {self.block_size}: a multiple of 16 in 16..256 is needed")
        if not 1 <= self.group_size <= 16:
            raise ValueError(
                f"group_size {self.group_size}: 1 to 16 query heads a KV head are needed"
            )


def new_task(scale: float, window: int | None) -> NDArray[np.int64]:
    """A task with its constant fields set; the others are set before each run."""
    task = np.zeros(NUM_FIELDS, dtype=np.int64)
    task[SCALE : SCALE + 1].view(np.float64)[0] = scale
    task[WINDOW] = _NO_WINDOW if window is None else window
    return task


@cache
def decode_kernel(shape: DecodeShape) -> Any:
    """A C callback `void (*)(int64_t *task)` that many threads may run on one task at once.

    Each thread takes items until none is left; an item is HEADS_PER_ITEM KV heads of one sequence.
    It appends their k and v at the last position of the context, attends over the context (or its
    last `window` tokens), and writes group_size * head_dim outputs a head. Strides are in elements
    of the cache's type, heads are contiguous; the cache is
    [blocks, 2, num_kv_heads, block_size, head_dim].
    """
    shape.check()
    element, rows, dim, block_size = (
        int(shape.element),
        shape.group_size,
        shape.head_dim,
        shape.block_size,
    )
    size = shape.element.num_bytes
    row_bytes = dim * size
    group_bytes = rows * row_bytes
    page_bytes = block_size * row_bytes
    # Of one KV head: query rows, accumulators, scores, and (maximum, sum) pairs.
    acc_offset = 4 * rows * dim
    scores_offset = 2 * acc_offset
    state_offset = scores_offset + 4 * rows * block_size
    head_bytes = state_offset + 8 * rows

    def attend(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        scale = np.float32(task[SCALE:].view(np.float64)[0])
        num_kv_heads = task[NUM_KV_HEADS]
        heads_per_item = task[HEADS_PER_ITEM]
        items_per_sequence = (num_kv_heads + heads_per_item - 1) // heads_per_item
        num_items = task[NUM_SEQUENCES] * items_per_sequence
        value_offset = num_kv_heads * page_bytes
        scratch = np.empty(heads_per_item * head_bytes // 4, np.float32)
        base = scratch.ctypes.data
        while True:
            item = take_number(task.ctypes.data)
            if item >= num_items:
                break
            sequence = item // items_per_sequence
            first_head = (item - sequence * items_per_sequence) * heads_per_item
            num_heads = min(heads_per_item, num_kv_heads - first_head)
            context_len = load_i32(task[CONTEXT_LENS] + 4 * sequence)
            table = task[TABLES] + 4 * task[TABLE_STRIDE] * sequence
            cache = task[CACHE] + first_head * page_bytes
            last = context_len - 1
            page = cache + load_i32(table + 4 * (last // block_size)) * 2 * value_offset
            place = page + (last % block_size) * row_bytes
            new_k = task[K] + size * task[K_STRIDE] * sequence + first_head * row_bytes
            new_v = task[V] + size * task[V_STRIDE] * sequence + first_head * row_bytes
            query = task[Q] + size * task[Q_STRIDE] * sequence + first_head * group_bytes
            # Cleared through its name: that is also what keeps it alive behind the addresses.
            scratch[:] = 0.0
            for head in range(num_heads):
                copy_bytes(place + head * page_bytes, new_k + head * row_bytes, row_bytes)
                copy_bytes(
                    place + value_offset + head * page_bytes, new_v + head * row_bytes, row_bytes
                )
                own = base + head * head_bytes
                for row in range(rows):
                    source = query + head * group_bytes + row * row_bytes
                    load_query(source, scale, own + 4 * dim * row, element, dim)
                    store_f32(own + state_offset + 8 * row, np.float32(-3.0e38))
            visible = max(0, context_len - task[WINDOW])
            for block in range(visible // block_size, last // block_size + 1):
                # The walk: keys of all heads, then values of all heads, then the next block;
                # prefetches run two pages ahead of it.
                page = cache + load_i32(table + 4 * block) * 2 * value_offset
                next_block = min(block + 1, last // block_size)
                next_page = cache + load_i32(table + 4 * next_block) * 2 * value_offset
                first = max(0, visible - block * block_size)
                stop = min(block_size, context_len - block * block_size)
                num_tiles = (stop + 15) // 16
                for head in range(num_heads):
                    own = base + head * head_bytes
                    keys = page + head * page_bytes
                    ahead = keys + 2 * page_bytes
                    if head + 2 >= num_heads:
                        ahead += value_offset - num_heads * page_bytes
                    for tile in range(num_tiles):
                        offset = tile * 16 * row_bytes
                        score_tile(
                            own,
                            keys + offset,
                            own + scores_offset + 64 * tile,
                            block_size,
                            ahead + offset,
                            element,
                            rows,
                            dim,
                        )
                    for row in range(rows):
                        softmax_row(
                            own + scores_offset + 4 * block_size * row,
                            first,
                            stop,
                            num_tiles,
                            own + state_offset + 8 * row,
                            own + acc_offset + 4 * dim * row,
                            dim,
                        )
                for head in range(num_heads):
                    own = base + head * head_bytes
                    values = page + value_offset + head * page_bytes
                    ahead = values + 2 * page_bytes
                    if head + 2 >= num_heads:
                        ahead = next_page + (head + 2 - num_heads) * page_bytes
                    weigh_values(
                        own + scores_offset,
                        block_size,
                        values,
                        first,
                        stop,
                        own + acc_offset,
                        ahead,
                        element,
                        rows,
                        dim,
                    )
            out = task[OUT] + size * task[OUT_STRIDE] * sequence + first_head * group_bytes
            for head in range(num_heads):
                own = base + head * head_bytes
                for row in range(rows):
                    total = load_f32(own + state_offset + 8 * row + 4)
                    store_output(
                        own + acc_offset + 4 * dim * row,
                        np.float32(1.0) / total,
                        out + head * group_bytes + row * row_bytes,
                        element,
                        dim,
                    )

    return c_callback(types.void(types.CPointer(types.int64)))(attend)
