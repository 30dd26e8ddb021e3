"""Attention over paged keys and values, compiled: many threads share the items of one task.

Technique: tiles of vector IR read every page once in the order of memory (keys of all heads of a
tile of tokens, then their values) while lines further down the same walk are prefetched; softmax runs
online, a tile at a time. Parts of long sequences are merged by whoever finishes last.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, literally, types

from cpu_attn import kernel_task as f
from cpu_attn._jit import c_callback, compiled
from cpu_attn.element import Element
from cpu_attn.item_memory import head_memory
from cpu_attn.kernel_task import ITEM_FIELDS, NUM_FIELDS, TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant
from cpu_attn.memory import load_f32, load_i32, take_number
from cpu_attn.part_merge import finish_item
from cpu_attn.row_append import append_rows
from cpu_attn.row_conversion import copy_f32s
from cpu_attn.score_tile import load_query, score_unit
from cpu_attn.softmax_tile import LOG2_E, LOWEST, clear_row, softmax_row
from cpu_attn.tile_loops import SCORE_ROW_BYTES, UNIT_TOKENS, Multiply, multiply
from cpu_attn.tile_walk import list_units
from cpu_attn.value_tile import weigh_unit

_NUM_BYTES = tuple(element.num_bytes for element in Element)
_INT8 = int(Element.INT8)
_FMA = int(Multiply.FMA)
_LOWEST = np.float32(LOWEST)
_PREFETCH_BYTES = 8192
"""How far ahead of the walk lines are asked for: beyond what is in flight, well inside the L1."""


@cache
def attention_kernel(variant: KernelVariant) -> Any:
    """A C callback `void (*)(int64_t *task)`, see `kernel_task`; its address is `.address`.

    Each thread takes items until none is left: it puts the new keys and values of the item's tokens
    into the cache, attends over them, and writes outputs and their log-sum-exp (natural logarithm).
    A row that sees nothing gets zeros and -inf. Sinks belong to the item that ends the context.
    Nothing is checked: `paged_attention` does that.
    """
    kv, io = int(variant.kv), int(variant.io)
    dim, way = variant.head_dim, int(multiply(variant))

    def attend(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        num_kv_heads = task[f.NUM_KV_HEADS]
        at = head_memory(task[f.GROUP_SIZE] * task[f.Q_LEN], dim)
        # Zeros: ends of weight rows, and the row of values that stands in for a missing one.
        scratch = np.zeros((num_kv_heads * at.num_bytes + 4 * dim) // 4 + 16, np.float32)
        memory = (scratch.ctypes.data + 63) // 64 * 64
        zeros = memory + num_kv_heads * at.num_bytes
        units = np.empty((6, num_kv_heads * (TILE_TOKENS // UNIT_TOKENS)), np.int64)
        while True:
            number = take_number(task.ctypes.data)
            if number >= task[f.NUM_ITEMS]:
                break
            item = task[f.ITEMS] + 4 * ITEM_FIELDS * number
            if task[f.K] != 0:
                append_rows(task, item, io, kv, dim)
            _begin(task, item, memory, io, kv, dim, way)
            _attend(task, item, memory, zeros, units, kv, dim, way)
            finish_item(task, item, memory, io, kv, dim, way)
        # Named to the end: that is what keeps it alive behind its address.
        scratch[0] = 0.0

    return c_callback(types.void(types.CPointer(types.int64)))(attend)


@compiled(None)
def _begin(task: Any, item: Any, memory: Any, io: Any, kv: Any, head_dim: Any, way: Any) -> None:
    """Loads the item's query rows and clears their accumulators."""
    literally(io)
    literally(kv)
    literally(head_dim)
    literally(way)
    group_size = task[f.GROUP_SIZE]
    num_rows = group_size * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    row_bytes = head_dim * _NUM_BYTES[io]
    sequence = load_i32(item + 4 * f.SEQUENCE)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    context_len = load_i32(task[f.CONTEXT_LENS] + 4 * sequence)
    has_sinks = task[f.SINKS] != 0 and load_i32(item + 4 * f.STOP_TOKEN) == context_len
    query = task[f.Q] + task[f.Q_SEQUENCE_STRIDE] * sequence
    q_row_bytes = head_dim * (4 if way == _FMA else 2)
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


@compiled(None)
def _attend(
    task: Any, item: Any, memory: Any, zeros: Any, units: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Walks over the item's tiles: keys, softmax, values, and on."""
    literally(kv)
    literally(head_dim)
    literally(way)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    page_bytes = task[f.BLOCK_SIZE] * head_dim * _NUM_BYTES[kv]
    values_offset = task[f.NUM_KV_HEADS] * page_bytes
    ahead = max(1, _PREFETCH_BYTES // (UNIT_TOKENS * head_dim * _NUM_BYTES[kv]))
    tile = load_i32(item + 4 * f.FIRST_TOKEN)
    stop_token = load_i32(item + 4 * f.STOP_TOKEN)
    keys, heads, tokens = units[0], units[1], units[2]
    next_keys, next_heads, next_tokens = units[3], units[4], units[5]
    lowest = _lowest(task, item, tile)
    count = list_units(
        task, item, lowest, min(stop_token, tile + TILE_TOKENS), page_bytes, keys, heads, tokens
    )
    while tile < stop_token:
        stop = min(stop_token, tile + TILE_TOKENS)
        next_tile = tile + TILE_TOKENS
        next_count = 0
        next_lowest = next_tile
        if next_tile < stop_token:
            next_lowest = _lowest(task, item, next_tile)
            next_count = list_units(
                task,
                item,
                next_lowest,
                min(stop_token, next_tile + TILE_TOKENS),
                page_bytes,
                next_keys,
                next_heads,
                next_tokens,
            )
        for unit in range(count):
            later = unit + ahead
            if later < count:
                target = keys[later]
            else:
                target = keys[min(later - count, count - 1)] + values_offset
            own = memory + heads[unit] * at.num_bytes
            score_unit(
                own + at.q,
                keys[unit],
                own + at.scores + 4 * tokens[unit],
                num_rows,
                target,
                kv,
                head_dim,
                way,
            )
        _softmax(task, item, memory, tile, stop, kv, head_dim, way)
        for unit in range(count):
            later = unit + ahead
            if later < count:
                target = keys[later] + values_offset
            elif next_count > 0:
                target = next_keys[min(later - count, next_count - 1)]
            else:
                target = keys[unit] + values_offset
            own = memory + heads[unit] * at.num_bytes
            token = tokens[unit]
            weights = own + (at.scores if way == _FMA else at.weights)
            weigh_unit(
                weights + (4 if way == _FMA else 2) * token,
                keys[unit] + values_offset,
                max(0, lowest - tile - token),
                min(UNIT_TOKENS, stop - tile - token),
                own + at.acc,
                num_rows,
                target,
                zeros,
                kv,
                head_dim,
                way,
            )
        tile, count, lowest = next_tile, next_count, next_lowest
        keys, next_keys = next_keys, keys
        heads, next_heads = next_heads, heads
        tokens, next_tokens = next_tokens, tokens


@compiled(None)
def _lowest(task: Any, item: Any, tile: Any) -> Any:
    """The first position of a tile that some row of the item sees, or its first one."""
    if tile < task[f.SINK_TOKENS]:
        return tile
    sequence = load_i32(item + 4 * f.SEQUENCE)
    context_len = load_i32(task[f.CONTEXT_LENS] + 4 * sequence)
    seen = context_len - task[f.Q_LEN] + 1 - task[f.WINDOW]
    return max(tile, min(seen, tile + TILE_TOKENS - 1))


@compiled(None)
def _softmax(
    task: Any, item: Any, memory: Any, tile: Any, stop: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Scores of a tile to weights, row by row."""
    literally(kv)
    literally(head_dim)
    literally(way)
    group_size = task[f.GROUP_SIZE]
    num_rows = group_size * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    sequence = load_i32(item + 4 * f.SEQUENCE)
    start = load_i32(task[f.CONTEXT_LENS] + 4 * sequence) - task[f.Q_LEN]
    scale = np.float32(task[f.SCALE :].view(np.float64)[0] * LOG2_E)
    sink = task[f.SINK_TOKENS] - tile
    for head in range(load_i32(item + 4 * f.HEADS)):
        own = memory + head * at.num_bytes
        if kv == _INT8:
            _gather_scales(task, item, head, tile, stop, own + at.key_scales, own + at.value_scales)
        for row in range(num_rows):
            position = start + row // group_size
            softmax_row(
                own + at.scores + SCORE_ROW_BYTES * row,
                own + (at.scores if way == _FMA else at.weights) + SCORE_ROW_BYTES * row,
                max(0, position + 1 - task[f.WINDOW] - tile),
                min(stop, position + 1) - tile,
                sink,
                own + at.state + 8 * row,
                own + at.acc + 4 * head_dim * row,
                own + at.key_scales,
                own + at.value_scales,
                scale,
                head_dim,
                kv,
                way,
            )


@compiled(None)
def _gather_scales(
    task: Any, item: Any, head: Any, tile: Any, stop: Any, key_scales: Any, value_scales: Any
) -> None:
    """A head's scales of a tile's tokens, from the blocks they lie in."""
    block_size = task[f.BLOCK_SIZE]
    sequence = load_i32(item + 4 * f.SEQUENCE)
    table = task[f.TABLES] + task[f.TABLE_STRIDE] * sequence
    for position in range(tile, stop, UNIT_TOKENS):
        block = load_i32(table + 4 * (position // block_size))
        source = task[f.SCALES] + block * task[f.SCALES_STRIDE]
        row = (load_i32(item + 4 * f.FIRST_HEAD) + head) * block_size + position % block_size
        place = 4 * (position - tile)
        copy_f32s(source + 4 * row, key_scales + place, UNIT_TOKENS)
        source += 4 * task[f.NUM_KV_HEADS] * block_size
        copy_f32s(source + 4 * row, value_scales + place, UNIT_TOKENS)
