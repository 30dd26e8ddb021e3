"""Attention over paged keys and values, compiled: many threads share the items of one task.

Technique: tiles of vector IR read every page once in the order of memory (keys of all heads of a
tile of tokens, then their values) while lines further down the same walk are prefetched; softmax
runs online, a tile at a time. Parts of long sequences are merged by whoever finishes last.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, literally, types

from cpu_attn import kernel_task as f
from cpu_attn._jit import c_callback, compiled
from cpu_attn.element import NUM_BYTES
from cpu_attn.item_memory import head_memory
from cpu_attn.item_rows import begin_item
from cpu_attn.kernel_task import ITEM_FIELDS, NUM_FIELDS, TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant
from cpu_attn.memory import load_i32, take_number
from cpu_attn.part_merge import finish_item
from cpu_attn.row_append import append_rows
from cpu_attn.score_tile import score_unit
from cpu_attn.tile_loops import PIECE_TOKENS, UNIT_TOKENS, Multiply, multiply, pieces_ahead
from cpu_attn.tile_softmax import softmax_head
from cpu_attn.tile_walk import PIECES_A_TILE, PIECES_A_UNIT, list_units, lowest_seen
from cpu_attn.value_tile import weigh_unit

_DOT = int(Multiply.DOT)


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
    piece_bytes = PIECE_TOKENS * dim * variant.kv.num_bytes
    most_ahead = max(pieces_ahead(piece_bytes)) + PIECES_A_UNIT

    def attend(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        num_kv_heads = task[f.NUM_KV_HEADS]
        at = head_memory(task[f.GROUP_SIZE] * task[f.Q_LEN], dim)
        # Cleared, for the row of values that stands in for missing ones.
        scratch = np.zeros((num_kv_heads * at.num_bytes + 4 * dim) // 4 + 16, np.float32)
        memory = (scratch.ctypes.data + 63) // 64 * 64
        zeros = memory + num_kv_heads * at.num_bytes
        num_pieces = num_kv_heads * PIECES_A_TILE
        # Keys and values of one tile, then keys of the next.
        walk = np.empty(3 * num_pieces + most_ahead, np.int64)
        places = np.empty((2, num_pieces // PIECES_A_UNIT, 2), np.int64)
        idle_walk = np.full(most_ahead, memory, np.int64)
        while True:
            number = take_number(task.ctypes.data)
            if number >= task[f.NUM_ITEMS]:
                break
            item = task[f.ITEMS] + 4 * ITEM_FIELDS * number
            if task[f.K] != 0:
                append_rows(task, item, io, kv, dim)
            begin_item(task, item, memory, io, kv, dim, way)
            _attend(task, item, memory, zeros, walk, places, idle_walk, kv, dim, way)
            finish_item(task, item, memory, io, kv, dim, way)
        # Named to the end: that is what keeps it alive behind its address.
        scratch[0] = 0.0

    return c_callback(types.void(types.CPointer(types.int64)))(attend)


@compiled(None)
def _attend(
    task: Any,
    item: Any,
    memory: Any,
    zeros: Any,
    walk: Any,
    places: Any,
    idle_walk: Any,
    kv: Any,
    head_dim: Any,
    way: Any,
) -> None:
    """Walks over the item's tiles: keys, softmax, values, and on."""
    literally(kv)
    literally(head_dim)
    literally(way)
    page_bytes = task[f.BLOCK_SIZE] * head_dim * NUM_BYTES[kv]
    values_offset = task[f.NUM_KV_HEADS] * page_bytes
    tile = load_i32(item + 4 * f.FIRST_TOKEN)
    stop_token = load_i32(item + 4 * f.STOP_TOKEN)
    own_places, next_places = places[0], places[1]
    lowest = lowest_seen(task, item, tile)
    stop = min(stop_token, tile + TILE_TOKENS)
    count = list_units(task, item, lowest, stop, page_bytes, walk, own_places)
    while tile < stop_token:
        num_pieces = PIECES_A_UNIT * count
        for piece in range(num_pieces):
            walk[num_pieces + piece] = walk[piece] + values_offset
        next_tile = tile + TILE_TOKENS
        next_stop = min(stop_token, next_tile + TILE_TOKENS)
        next_lowest, next_count = next_tile, 0
        following = walk[2 * num_pieces :]
        if next_tile < stop_token:
            next_lowest = lowest_seen(task, item, next_tile)
            next_count = list_units(
                task, item, next_lowest, next_stop, page_bytes, following, next_places
            )
        num_next = PIECES_A_UNIT * next_count
        # Behind the end there is nothing to ask for.
        for piece in range(num_next, len(idle_walk)):
            following[piece] = idle_walk[0]
        _scores(
            task, item, memory, count, walk, own_places, idle_walk, tile, stop, kv, head_dim, way
        )
        _values(
            task,
            memory,
            zeros,
            count,
            walk,
            own_places,
            idle_walk,
            lowest - tile,
            stop - tile,
            kv,
            head_dim,
            way,
        )
        walk[:num_next] = following[:num_next]
        own_places, next_places = next_places, own_places
        tile, stop, lowest, count = next_tile, next_stop, next_lowest, next_count


@compiled(None)
def _scores(
    task: Any,
    item: Any,
    memory: Any,
    num_units: Any,
    walk: Any,
    places: Any,
    idle_walk: Any,
    tile: Any,
    stop: Any,
    kv: Any,
    head_dim: Any,
    way: Any,
) -> None:
    """Weights of a tile's tokens (positions tile .. stop - 1) for all heads of the item."""
    literally(kv)
    literally(head_dim)
    literally(way)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    for unit in range(num_units):
        token, head = places[unit, 0], places[unit, 1]
        own = memory + head * at.num_bytes
        entry = walk.ctypes.data + 8 * PIECES_A_UNIT * unit
        scores = own + at.scores + 4 * token
        idle = idle_walk.ctypes.data
        score_unit(own + at.q, entry, scores, num_rows, idle, kv, head_dim, way)
        if token + UNIT_TOKENS >= stop - tile:
            # A head at a time: memory delivers what was asked for while weights are computed.
            softmax_head(task, item, head, own, tile, stop, kv, head_dim, way)


@compiled(None)
def _values(
    task: Any,
    memory: Any,
    zeros: Any,
    num_units: Any,
    walk: Any,
    places: Any,
    idle_walk: Any,
    first: Any,
    stop: Any,
    kv: Any,
    head_dim: Any,
    way: Any,
) -> None:
    """Adds the weighted values of a tile's tokens first .. stop - 1 for all heads of the item."""
    literally(kv)
    literally(head_dim)
    literally(way)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    for unit in range(num_units):
        token, head = places[unit, 0], places[unit, 1]
        own = memory + head * at.num_bytes
        entry = walk.ctypes.data + 8 * PIECES_A_UNIT * (num_units + unit)
        weights = own + at.scores + (2 if way == _DOT else 4) * token
        first_token = max(0, first - token)
        stop_token = min(UNIT_TOKENS, stop - token)
        idle = idle_walk.ctypes.data
        weigh_unit(
            weights,
            entry,
            first_token,
            stop_token,
            own + at.acc,
            num_rows,
            idle,
            zeros,
            kv,
            head_dim,
            way,
        )
