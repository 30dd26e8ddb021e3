"""Row-wise kernels of a decoder layer: add and RMSNorm, head norm and RoPE, gated SiLU.

Each is a C callback `void (*)(int64_t *task)`; the threads that run one share its rows. A task
holds the next item (0 at first), the number of rows, then the fields named beside each kernel:
addresses, and strides in bytes.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, types

from cpu_attn._jit import c_callback
from cpu_attn.element import Element
from cpu_attn.memory import take_number
from cpu_attn.row_tiles import add_norm_row, gated_silu_row, rotate_head

NUM_FIELDS = 12
_ROWS_PER_ITEM = 4
_TASK = types.void(types.CPointer(types.int64))


@cache
def add_norm_kernel(element: Element, adds: bool) -> Any:
    """Fields: x, its stride, delta, its stride, total, weight, out, length, epsilon (float64 bits).

    total = x + delta and out = RMSNorm(total) * weight; without `adds`, out = RMSNorm(x) * weight.
    total and out are contiguous; lengths are multiples of 32.
    """
    kind, with_sum, size = int(element), int(adds), element.num_bytes

    def run(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        eps = np.float32(task[10:].view(np.float64)[0])
        row_bytes = task[9] * size
        while True:
            first = take_number(task.ctypes.data) * _ROWS_PER_ITEM
            if first >= task[1]:
                break
            for row in range(first, min(first + _ROWS_PER_ITEM, task[1])):
                add_norm_row(
                    task[2] + row * task[3],
                    task[4] + row * task[5],
                    task[6] + row * row_bytes,
                    task[7],
                    task[8] + row * row_bytes,
                    task[9],
                    eps,
                    with_sum,
                    kind,
                )

    return c_callback(_TASK)(run)


@cache
def rotate_kernel(element: Element, head_dim: int, norms: bool) -> Any:
    """Fields: heads, row stride, number of heads, weight, cos, signed sin, epsilon (float64 bits).

    In place; heads of a row are contiguous, `weight` is [heads, head_dim], cos and sin are
    [rows, head_dim]; half a head is a multiple of 32 elements.
    """
    kind, with_norm, size = int(element), int(norms), element.num_bytes

    def run(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        eps = np.float32(task[8:].view(np.float64)[0])
        head_bytes = head_dim * size
        while True:
            first = take_number(task.ctypes.data) * _ROWS_PER_ITEM
            if first >= task[1]:
                break
            for row in range(first, min(first + _ROWS_PER_ITEM, task[1])):
                for head in range(task[4]):
                    rotate_head(
                        task[2] + row * task[3] + head * head_bytes,
                        task[5] + head * head_bytes,
                        task[6] + row * head_bytes,
                        task[7] + row * head_bytes,
                        eps,
                        with_norm,
                        kind,
                        head_dim,
                    )

    return c_callback(_TASK)(run)


@cache
def gated_silu_kernel(element: Element) -> Any:
    """Fields: gate_up, out, length. out = silu(gate) * up; gate_up is [rows, 2 * length]."""
    kind, size = int(element), element.num_bytes

    def run(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        row_bytes = task[4] * size
        while True:
            first = take_number(task.ctypes.data) * _ROWS_PER_ITEM
            if first >= task[1]:
                break
            for row in range(first, min(first + _ROWS_PER_ITEM, task[1])):
                gate = task[2] + 2 * row * row_bytes
                gated_silu_row(gate, gate + row_bytes, task[3] + row * row_bytes, task[4], kind)

    return c_callback(_TASK)(run)
