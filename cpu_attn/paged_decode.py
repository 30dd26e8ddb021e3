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
from cpu_attn.memory import copy_bytes, load_f32, load_i32, take_number
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
NUM_FIELDS = 17

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

    Each thread takes (sequence, KV head) items until none is left: appends the item's k and v at
    the last position of its context, attends over the context (or its last `window` tokens), and
    writes group_size * head_dim outputs. Strides are in elements of the cache's type, heads are
    contiguous; the cache is [blocks, 2, num_kv_heads, block_size, head_dim].
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
    scratch_floats = rows * (2 * dim + block_size + 2)

    def attend(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        scale = np.float32(task[SCALE:].view(np.float64)[0])
        scratch = np.empty(scratch_floats, np.float32)
        q = scratch.ctypes.data
        acc = q + 4 * rows * dim
        scores = acc + 4 * rows * dim
        state = scores + 4 * rows * block_size
        num_kv_heads = task[NUM_KV_HEADS]
        num_items = task[NUM_SEQUENCES] * num_kv_heads
        value_offset = num_kv_heads * page_bytes
        while True:
            item = take_number(task.ctypes.data)
            if item >= num_items:
                break
            sequence = item // num_kv_heads
            head = item - sequence * num_kv_heads
            context_len = load_i32(task[CONTEXT_LENS] + 4 * sequence)
            table = task[TABLES] + 4 * task[TABLE_STRIDE] * sequence
            head_cache = task[CACHE] + head * page_bytes
            last = context_len - 1
            page = head_cache + load_i32(table + 4 * (last // block_size)) * 2 * value_offset
            place = page + (last % block_size) * row_bytes
            copy_bytes(
                place, task[K] + size * task[K_STRIDE] * sequence + head * row_bytes, row_bytes
            )
            copy_bytes(
                place + value_offset,
                task[V] + size * task[V_STRIDE] * sequence + head * row_bytes,
                row_bytes,
            )
            query = task[Q] + size * task[Q_STRIDE] * sequence + head * group_bytes
            for row in range(rows):
                load_query(query + row * row_bytes, scale, q + 4 * dim * row, element, dim)
                scratch[rows * (2 * dim + block_size) + 2 * row] = -3.0e38
                scratch[rows * (2 * dim + block_size) + 2 * row + 1] = 0.0
            scratch[rows * dim : 2 * rows * dim] = 0.0
            visible = max(0, context_len - task[WINDOW])
            for block in range(visible // block_size, last // block_size + 1):
                page = head_cache + load_i32(table + 4 * block) * 2 * value_offset
                next_block = min(block + 1, last // block_size)
                ahead = head_cache + load_i32(table + 4 * next_block) * 2 * value_offset
                first = max(0, visible - block * block_size)
                stop = min(block_size, context_len - block * block_size)
                num_tiles = (stop + 15) // 16
                for tile in range(num_tiles):
                    offset = tile * 16 * row_bytes
                    score_tile(
                        q,
                        page + offset,
                        scores + 64 * tile,
                        block_size,
                        ahead + offset,
                        element,
                        rows,
                        dim,
                    )
                for row in range(rows):
                    softmax_row(
                        scores + 4 * block_size * row,
                        first,
                        stop,
                        num_tiles,
                        state + 8 * row,
                        acc + 4 * dim * row,
                        dim,
                    )
                weigh_values(
                    scores,
                    block_size,
                    page + value_offset,
                    first,
                    stop,
                    acc,
                    ahead + value_offset,
                    element,
                    rows,
                    dim,
                )
            out = task[OUT] + size * task[OUT_STRIDE] * sequence + head * group_bytes
            for row in range(rows):
                total = load_f32(state + 8 * row + 4)
                store_output(
                    acc + 4 * dim * row,
                    np.float32(1.0) / total,
                    out + row * row_bytes,
                    element,
                    dim,
                )

    return c_callback(types.void(types.CPointer(types.int64)))(attend)
