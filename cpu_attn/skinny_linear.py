"""Linear layers of few rows in bfloat16: little more than one reading of their weights.

The weights lie as [out_features / 64, in_features / 2, 64, 2]. The kernel is a C callback
`void (*)(int64_t *task)`; the threads that run one share its blocks of 64 outputs. Rows do not see
each other: what a row gives does not depend on the others, nor on the number of threads.
"""

from functools import cache
from typing import Any

from numba import carray, types

from cpu_attn import isa
from cpu_attn._jit import c_callback
from cpu_attn.memory import take_number
from cpu_attn.skinny_tile import (
    BLOCK_OUTPUTS,
    PAIR_BYTES,
    SUM_ROW_BYTES,
    add_products,
    stack_memory,
    start_sums,
    store_sums,
)

MAX_ROWS = 64
"""Of one run; their sums take 16 KiB of each thread's stack."""

# Fields of a task. Addresses and strides are in bytes.
NEXT_BLOCK = 0
"""The caller sets it to 0 before each run."""
NUM_BLOCKS = 1
NUM_PAIRS = 2
"""in_features / 2."""
WEIGHTS = 3
BIAS = 4
"""float32 [out_features]."""
NUM_ROWS = 5
"""1 to MAX_ROWS."""
X, X_STRIDE = 6, 7
OUT, OUT_STRIDE = 8, 9
NUM_FIELDS = 10

# All rows go over one chunk before the next, which comes into the second-level cache meanwhile.
_CHUNK_PAIRS = 64
_TASK = types.void(types.CPointer(types.int64))
_SUMS_BYTES = MAX_ROWS * SUM_ROW_BYTES


def can_run() -> bool:
    """Whether this CPU has the instructions that the kernel is written for."""
    return isa.active().dots_bfloat16


@cache
def skinny_linear_kernel() -> Any:
    """x [rows, in_features] and out [rows, out_features] are bfloat16 with contiguous rows.

    out = x W^T + bias: products are exact, sums float32, subnormal numbers count as zero.
    """
    assert can_run()

    def run(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        num_pairs, num_rows, weights = task[NUM_PAIRS], task[NUM_ROWS], task[WEIGHTS]
        block_bytes = num_pairs * PAIR_BYTES
        sums = stack_memory(_SUMS_BYTES)
        block = take_number(task.ctypes.data)
        while block < task[NUM_BLOCKS]:
            for row in range(num_rows):
                start_sums(task[BIAS] + block * SUM_ROW_BYTES, sums + row * SUM_ROW_BYTES)
            following = block
            for first in range(0, num_pairs, _CHUNK_PAIRS):
                chunk = weights + block * block_bytes + first * PAIR_BYTES
                ahead = chunk + _CHUNK_PAIRS * PAIR_BYTES
                if first + _CHUNK_PAIRS >= num_pairs:
                    # The next block is taken in time to ask for its beginning; where there is
                    # none, what is asked for is in the cache.
                    following = take_number(task.ctypes.data)
                    is_there = following < task[NUM_BLOCKS]
                    ahead = weights + following * block_bytes if is_there else chunk
                count = min(_CHUNK_PAIRS, num_pairs - first)
                x = task[X] + 4 * first
                add_products(x, task[X_STRIDE], chunk, sums, count, ahead, num_rows)
            out = task[OUT] + block * (2 * BLOCK_OUTPUTS)
            for row in range(num_rows):
                store_sums(sums + row * SUM_ROW_BYTES, out + row * task[OUT_STRIDE])
            block = following

    return c_callback(_TASK)(run)
