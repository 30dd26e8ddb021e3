"""New keys and values of an item's tokens, put where the block table says."""

from typing import Any

from numba import literally

from cpu_attn import kernel_task as f
from cpu_attn._jit import kernel_part
from cpu_attn.element import NUM_BYTES, Element
from cpu_attn.memory import load_i32, store_f32
from cpu_attn.row_conversion import convert_row, quantise_row

_INT8 = int(Element.INT8)


@kernel_part
def append_rows(task: Any, item: Any, io: Any, kv: Any, head_dim: Any) -> None:
    """Positions outside the item's range are another item's, which reads them."""
    literally(io)
    literally(kv)
    literally(head_dim)
    sequence = load_i32(item + 4 * f.SEQUENCE)
    context_len = load_i32(task[f.CONTEXT_LENS] + 4 * sequence)
    start = context_len - task[f.Q_LEN]
    first = max(start, load_i32(item + 4 * f.FIRST_TOKEN))
    stop = min(context_len, load_i32(item + 4 * f.STOP_TOKEN))
    row_bytes = head_dim * NUM_BYTES[io]
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    for position in range(first, stop):
        token = position - start
        k = task[f.K] + task[f.K_SEQUENCE_STRIDE] * sequence + task[f.K_TOKEN_STRIDE] * token
        v = task[f.V] + task[f.V_SEQUENCE_STRIDE] * sequence + task[f.V_TOKEN_STRIDE] * token
        for head in range(first_head, first_head + load_i32(item + 4 * f.HEADS)):
            _append(task, sequence, position, head, 0, k + head * row_bytes, io, kv, head_dim)
            _append(task, sequence, position, head, 1, v + head * row_bytes, io, kv, head_dim)


@kernel_part
def _append(
    task: Any,
    sequence: Any,
    position: Any,
    head: Any,
    half: Any,
    source: Any,
    io: Any,
    kv: Any,
    head_dim: Any,
) -> None:
    """One row of keys (half 0) or values (half 1)."""
    literally(io)
    literally(kv)
    literally(head_dim)
    block_size = task[f.BLOCK_SIZE]
    table = task[f.TABLES] + task[f.TABLE_STRIDE] * sequence
    block = load_i32(table + 4 * (position // block_size))
    row = (half * task[f.NUM_KV_HEADS] + head) * block_size + position % block_size
    target = task[f.CACHE] + block * task[f.BLOCK_STRIDE] + row * head_dim * NUM_BYTES[kv]
    if kv == _INT8:
        scale = quantise_row(source, target, io, head_dim)
        store_f32(task[f.SCALES] + block * task[f.SCALES_STRIDE] + 4 * row, scale)
    else:
        convert_row(source, target, io, kv, head_dim)
