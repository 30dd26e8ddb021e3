"""What becomes of a finished item: outputs, or a partial result that the last finisher merges."""

import math
from typing import Any

import numpy as np
from numba import literally

from cpu_attn import kernel_task as f
from cpu_attn._jit import kernel_part
from cpu_attn.element import NUM_BYTES, Element
from cpu_attn.item_memory import head_memory
from cpu_attn.memory import (
    count_down,
    count_up,
    load_f32,
    load_i32,
    store_f32,
    store_i32,
)
from cpu_attn.row_conversion import add_scaled_row, convert_row
from cpu_attn.value_tile import store_output
from cpu_attn.vector_ir import LOG2_E

_F32 = int(Element.FLOAT32)
_LN_2 = np.float32(1.0 / LOG2_E)


@kernel_part
def finish_item(
    task: Any, item: Any, memory: Any, io: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Divides the item's accumulators by their sums and hands the rows on."""
    literally(io)
    literally(kv)
    literally(head_dim)
    literally(way)
    if load_i32(item + 4 * f.FIRST_PART) < 0:
        _store_rows(task, item, memory, 0, io, kv, head_dim, way)
        count_up(task.ctypes.data + 8 * f.NUM_FINISHED)
        return
    part = load_i32(item + 4 * f.FIRST_PART) + load_i32(item + 4 * f.PART)
    partial = task[f.PARTIALS] + part * task[f.PARTIAL_STRIDE]
    _store_rows(task, item, memory, partial, _F32, kv, head_dim, way)
    left = task[f.PARTS_LEFT] + 4 * load_i32(item + 4 * f.GROUP)
    if count_down(left) == 1:
        # Ready for the next run, in which the same plan may be used again.
        store_i32(left, load_i32(item + 4 * f.NUM_PARTS))
        _merge_parts(task, item, memory, io, head_dim)
        count_up(task.ctypes.data + 8 * f.NUM_FINISHED)


@kernel_part
def _store_rows(
    task: Any, item: Any, memory: Any, partial: Any, io: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Rows as `io` to the task's outputs, or as float32 to `partial` where that is not 0."""
    literally(io)
    literally(kv)
    literally(head_dim)
    literally(way)
    group_size = task[f.GROUP_SIZE]
    num_rows = group_size * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    for head in range(load_i32(item + 4 * f.HEADS)):
        own = memory + head * at.num_bytes
        for row in range(num_rows):
            maximum = load_f32(own + at.state + 8 * row)
            total = load_f32(own + at.state + 8 * row + 4)
            # A sum of zero: no token of the item is visible to this row.
            scale = np.float32(0.0) if total == 0.0 else np.float32(1.0) / total
            lse = -math.inf if total == 0.0 else maximum * _LN_2 + math.log(total)
            out, lse_address = _row_places(
                task, item, first_head + head, row, partial, NUM_BYTES[io], head_dim
            )
            store_output(own + at.acc + 4 * head_dim * row, out, scale, io, kv, head_dim, way)
            if lse_address != 0:
                store_f32(lse_address, np.float32(lse))


@kernel_part
def _row_places(
    task: Any, item: Any, head: Any, row: Any, partial: Any, num_bytes: Any, head_dim: Any
) -> Any:
    """Addresses of a row's output and log-sum-exp (0: not wanted), final or partial."""
    group_size = task[f.GROUP_SIZE]
    q_len = task[f.Q_LEN]
    if partial != 0:
        place = head * group_size * q_len + row
        num_rows = task[f.NUM_KV_HEADS] * group_size * q_len
        return partial + 4 * head_dim * place, partial + 4 * (head_dim * num_rows + place)
    sequence = load_i32(item + 4 * f.SEQUENCE)
    token = row // group_size
    query_head = head * group_size + row % group_size
    out = task[f.OUT] + task[f.OUT_SEQUENCE_STRIDE] * sequence + task[f.OUT_TOKEN_STRIDE] * token
    lse = task[f.LSE]
    if lse != 0:
        num_heads = task[f.NUM_KV_HEADS] * group_size
        lse += 4 * ((sequence * q_len + token) * num_heads + query_head)
    return out + query_head * head_dim * num_bytes, lse


@kernel_part
def _merge_parts(task: Any, item: Any, memory: Any, io: Any, head_dim: Any) -> None:
    """Merges the parts of the item's heads, always in the order of the tokens."""
    literally(io)
    literally(head_dim)
    first_part = load_i32(item + 4 * f.FIRST_PART)
    num_parts = load_i32(item + 4 * f.NUM_PARTS)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    for head in range(first_head, first_head + load_i32(item + 4 * f.HEADS)):
        for row in range(num_rows):
            maximum = -math.inf
            for part in range(first_part, first_part + num_parts):
                partial = task[f.PARTIALS] + part * task[f.PARTIAL_STRIDE]
                _, lse = _row_places(task, item, head, row, partial, 4, head_dim)
                maximum = max(maximum, load_f32(lse))
            total = 0.0
            for part in range(first_part, first_part + num_parts):
                partial = task[f.PARTIALS] + part * task[f.PARTIAL_STRIDE]
                source, lse = _row_places(task, item, head, row, partial, 4, head_dim)
                # Of a part without a visible token; NaN is none, and stays.
                is_empty = load_f32(lse) == -math.inf
                weight = 0.0 if is_empty else math.exp(load_f32(lse) - maximum)
                total += weight
                is_first = part == first_part
                add_scaled_row(source, memory, np.float32(weight), is_first, head_dim)
            scale = 0.0 if total == 0.0 else 1.0 / total
            add_scaled_row(memory, memory, np.float32(scale), True, head_dim)
            out, lse = _row_places(task, item, head, row, 0, NUM_BYTES[io], head_dim)
            convert_row(memory, out, _F32, io, head_dim)
            if lse != 0:
                merged = -math.inf if total == 0.0 else maximum + math.log(total)
                store_f32(lse, np.float32(merged))
