"""The query rows of an item, made ready for its walk over keys and values."""

from typing import Any

import numpy as np
from numba import literally

from cpu_attn import kernel_task as f
from cpu_attn._jit import kernel_part
from cpu_attn.element import NUM_BYTES
from cpu_attn.item_memory import head_memory
from cpu_attn.memory import load_f32, load_i32
from cpu_attn.score_tile import load_query
from cpu_attn.softmax_tile import LOWEST, clear_row
from cpu_attn.tile_loops import QUERY_BYTES
from cpu_attn.vector_ir import LOG2_E

_LOWEST = np.float32(LOWEST)


@kernel_part
def begin_item(
    task: Any, item: Any, memory: Any, io: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Loads the item's query rows and clears their accumulators."""
    literally(io)
    literally(kv)
    literally(head_dim)
    literally(way)
    group_size = task[f.GROUP_SIZE]
    num_rows = group_size * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    row_bytes = head_dim * NUM_BYTES[io]
    sequence = load_i32(item + 4 * f.SEQUENCE)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    context_len = load_i32(task[f.CONTEXT_LENS] + 4 * sequence)
    has_sinks = task[f.SINKS] != 0 and load_i32(item + 4 * f.STOP_TOKEN) == context_len
    query = task[f.Q] + task[f.Q_SEQUENCE_STRIDE] * sequence
    q_row_bytes = head_dim * QUERY_BYTES[way]
    for head in range(load_i32(item + 4 * f.HEADS)):
        own = memory + head * at.num_bytes
        for row in range(num_rows):
            query_head = (first_head + head) * group_size + row % group_size
            source = query + task[f.Q_TOKEN_STRIDE] * (row // group_size) + query_head * row_bytes
            load_query(source, own + at.q + q_row_bytes * row, io, kv, head_dim, way)
            maximum, total = _LOWEST, np.float32(0.0)
            if has_sinks:
                maximum = load_f32(task[f.SINKS] + 4 * query_head) * np.float32(LOG2_E)
                total = np.float32(1.0)
            acc = own + at.acc + 4 * head_dim * row
            clear_row(acc, own + at.state + 8 * row, maximum, total, head_dim)
