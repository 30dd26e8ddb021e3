"""The numbers that one run of an attention kernel reads, and the items its threads share.

A task is an int64 array that lives as long as the run; addresses are of memory that does too. All
strides are in bytes. Within a token the heads are contiguous: [num_heads, head_dim].
"""

import numpy as np
from numpy.typing import NDArray

# Work: threads take items by counting NEXT_ITEM up; the caller sets it to 0 before each run.
NEXT_ITEM = 0
NUM_ITEMS = 1
ITEMS = 2
"""Address of int32 [num_items, ITEM_FIELDS]."""
NUM_FINISHED = 3
"""Counted up once for each group of parts that was merged or item that was whole; the caller sets
it to 0."""

# Shape.
NUM_KV_HEADS = 4
GROUP_SIZE = 5
"""Query heads of one KV head."""
Q_LEN = 6
"""Query tokens of each sequence; they are the last of its context."""
BLOCK_SIZE = 7
MAX_GROUP_SIZE, MAX_Q_LEN = 16, 8
"""What users may ask for; kernels take any."""

# Rows. K and V 0: they are in the cache already; otherwise each item first puts its own there.
Q, Q_SEQUENCE_STRIDE, Q_TOKEN_STRIDE = 8, 9, 10
K, K_SEQUENCE_STRIDE, K_TOKEN_STRIDE = 11, 12, 13
V, V_SEQUENCE_STRIDE, V_TOKEN_STRIDE = 14, 15, 16
OUT, OUT_SEQUENCE_STRIDE, OUT_TOKEN_STRIDE = 17, 18, 19
LSE = 20
"""Address of float32 [num_sequences, q_len, num_heads], or 0 where nobody wants it."""

# Cache, as in KvLayout: address of the layer in block 0, and from one block to the next.
CACHE, BLOCK_STRIDE = 21, 22
TABLES, TABLE_STRIDE = 23, 24
"""int32 block ids, one row a sequence."""
CONTEXT_LENS = 25
"""Address of int32 [num_sequences], the query tokens included."""
SCALES, SCALES_STRIDE = 26, 27
"""INT8: address of float32 [2, num_kv_heads, block_size] of block 0, and from block to block."""

# What a query token at position i sees: j <= i with j > i - WINDOW or j < SINK_TOKENS.
WINDOW = 28
SINK_TOKENS = 29
SINKS = 30
"""Address of float32 [num_heads]: a logit a head that takes part in the sum alone, or 0."""
SCALE = 31
"""float64 bits."""

# Parts of sequences that several items share; float32 [num_parts, PARTIAL_STRIDE bytes].
PARTIALS, PARTIAL_STRIDE = 32, 33
PARTS_LEFT = 34
"""Address of int32 [num_groups]; set to the number of parts, and so again after each run."""
NUM_FIELDS = 35

NO_WINDOW = 1 << 40

# Fields of an item, int32.
SEQUENCE = 0
FIRST_HEAD, HEADS = 1, 2
"""A range of KV heads."""
FIRST_TOKEN, STOP_TOKEN = 3, 4
"""A range of positions; FIRST_TOKEN is a multiple of TILE_TOKENS."""
FIRST_PART = 5
"""Index of the sequence's first partial result, or -1 where the item is the whole sequence."""
PART, NUM_PARTS = 6, 7
GROUP = 8
"""Index in PARTS_LEFT: the items of one sequence with the same heads."""
ITEM_FIELDS = 9

TILE_TOKENS = 64
"""Tokens between two runs of the online softmax; where a sequence may be cut."""


def partial_stride(num_heads: int, q_len: int, head_dim: int) -> int:
    """Bytes of one partial result: float32 outputs [num_kv_heads, rows, head_dim], then lse."""
    return 4 * num_heads * q_len * (head_dim + 1)


def new_task(
    *, num_kv_heads: int, group_size: int, q_len: int, block_size: int, scale: float
) -> NDArray[np.int64]:
    """A task with its shape and scale set, no window and no sinks."""
    task = np.zeros(NUM_FIELDS, dtype=np.int64)
    task[NUM_KV_HEADS] = num_kv_heads
    task[GROUP_SIZE] = group_size
    task[Q_LEN] = q_len
    task[BLOCK_SIZE] = block_size
    task[WINDOW] = NO_WINDOW
    task[SCALE] = np.float64(scale).view(np.int64)
    return task
