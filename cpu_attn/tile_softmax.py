"""Scores of one head's tile to weights: what each row sees, and where scales come from."""

from typing import Any

import numpy as np
from numba import literally

from cpu_attn import kernel_task as f
from cpu_attn._jit import kernel_part
from cpu_attn.element import Element
from cpu_attn.item_memory import head_memory
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.memory import load_i32
from cpu_attn.row_conversion import copy_f32s
from cpu_attn.softmax_tile import softmax_row
from cpu_attn.tile_loops import SCORE_ROW_BYTES, UNIT_TOKENS
from cpu_attn.vector_ir import LOG2_E

_INT8 = int(Element.INT8)


@kernel_part
def softmax_head(
    task: Any, item: Any, head: Any, own: Any, tile: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """A head's scores of a tile to weights, row by row."""
    literally(kv)
    literally(head_dim)
    literally(way)
    group_size = task[f.GROUP_SIZE]
    num_rows = group_size * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    sequence = load_i32(item + 4 * f.SEQUENCE)
    start = load_i32(task[f.CONTEXT_LENS] + 4 * sequence) - task[f.Q_LEN]
    scale = np.float32(task[f.SCALE :].view(np.float64)[0] * LOG2_E)
    if kv == _INT8:
        _gather_scales(task, item, head, tile, own + at.key_scales, own + at.value_scales)
    for row in range(num_rows):
        position = start + row // group_size
        softmax_row(
            own + at.scores + SCORE_ROW_BYTES * row,
            max(0, position + 1 - task[f.WINDOW] - tile.start),
            min(tile.stop, position + 1) - tile.start,
            min(task[f.SINK_TOKENS] - tile.start, TILE_TOKENS),
            own + at.state + 8 * row,
            own + at.acc + 4 * head_dim * row,
            own + at.key_scales,
            own + at.value_scales,
            scale,
            head_dim,
            kv,
            way,
        )


@kernel_part
def _gather_scales(
    task: Any, item: Any, head: Any, tile: Any, key_scales: Any, value_scales: Any
) -> None:
    """A head's scales of a tile's tokens, from the blocks they lie in."""
    block_size = task[f.BLOCK_SIZE]
    sequence = load_i32(item + 4 * f.SEQUENCE)
    table = task[f.TABLES] + task[f.TABLE_STRIDE] * sequence
    for position in range(tile.start, tile.stop, UNIT_TOKENS):
        block = load_i32(table + 4 * (position // block_size))
        source = task[f.SCALES] + block * task[f.SCALES_STRIDE]
        row = (load_i32(item + 4 * f.FIRST_HEAD) + head) * block_size + position % block_size
        place = 4 * (position - tile.start)
        copy_f32s(source + 4 * row, key_scales + place, UNIT_TOKENS)
        source += 4 * task[f.NUM_KV_HEADS] * block_size
        copy_f32s(source + 4 * row, value_scales + place, UNIT_TOKENS)
