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
from cpu_attn._jit import c_callback, kernel_part
from cpu_attn.element import NUM_BYTES
from cpu_attn.item_memory import ThreadMemory, head_memory
from cpu_attn.item_rows import begin_item
from cpu_attn.kernel_task import ITEM_FIELDS, NUM_FIELDS, TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant
from cpu_attn.memory import load_i32, take_number
from cpu_attn.part_merge import finish_item
from cpu_attn.row_append import append_rows
from cpu_attn.score_tile import score_unit
from cpu_attn.tile_loops import PIECE_TOKENS, UNIT_TOKENS, WEIGHT_BYTES, multiply, pieces_ahead
from cpu_attn.tile_softmax import softmax_head
from cpu_attn.tile_walk import PIECES_A_TILE, PIECES_A_UNIT, next_tile
from cpu_attn.value_tile import weigh_unit


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
        heads = (scratch.ctypes.data + 63) // 64 * 64
        num_pieces = num_kv_heads * PIECES_A_TILE
        memory = ThreadMemory(
            heads,
            heads + num_kv_heads * at.num_bytes,
            np.empty(3 * num_pieces + most_ahead, np.int64),
            np.empty((2, num_pieces // PIECES_A_UNIT, 2), np.int64),
            np.full(most_ahead, heads, np.int64),
        )
        while True:
            number = take_number(task.ctypes.data)
            if number >= task[f.NUM_ITEMS]:
                break
            item = task[f.ITEMS] + 4 * ITEM_FIELDS * number
            if task[f.K] != 0:
                append_rows(task, item, io, kv, dim)
            begin_item(task, item, heads, io, kv, dim, way)
            _attend(task, item, memory, kv, dim, way)
            finish_item(task, item, heads, io, kv, dim, way)
        # Named to the end: that is what keeps it alive behind its address.
        scratch[0] = 0.0

    return c_callback(types.void(types.CPointer(types.int64)))(attend)


@kernel_part
def _attend(task: Any, item: Any, memory: Any, kv: Any, head_dim: Any, way: Any) -> None:
    """Walks over the item's tiles: keys, softmax, values, and on."""
    literally(kv)
    literally(head_dim)
    literally(way)
    page_bytes = task[f.BLOCK_SIZE] * head_dim * NUM_BYTES[kv]
    values_offset = task[f.NUM_KV_HEADS] * page_bytes
    stop_token = load_i32(item + 4 * f.STOP_TOKEN)
    walk, idle_walk = memory.walk, memory.idle_walk
    places, next_places = memory.places[0], memory.places[1]
    start = load_i32(item + 4 * f.FIRST_TOKEN)
    tile = next_tile(task, item, start, page_bytes, walk, places)
    while tile.start < stop_token:
        num_pieces = PIECES_A_UNIT * tile.num_units
        for piece in range(num_pieces):
            walk[num_pieces + piece] = walk[piece] + values_offset
        following = walk[2 * num_pieces :]
        after = next_tile(task, item, tile.start + TILE_TOKENS, page_bytes, following, next_places)
        num_next = PIECES_A_UNIT * after.num_units
        # Behind the end there is nothing to ask for.
        for piece in range(num_next, len(idle_walk)):
            following[piece] = idle_walk[0]
        _scores(task, item, memory, tile, places, kv, head_dim, way)
        _values(task, memory, tile, places, kv, head_dim, way)
        # Not as slices: for the error of theirs numba would compile for seconds.
        for piece in range(num_next):
            walk[piece] = following[piece]
        places, next_places = next_places, places
        tile = after


@kernel_part
def _scores(
    task: Any, item: Any, memory: Any, tile: Any, places: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Weights of a tile's tokens for all heads of the item."""
    literally(kv)
    literally(head_dim)
    literally(way)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    idle = memory.idle_walk.ctypes.data
    for unit in range(tile.num_units):
        token, head = places[unit, 0], places[unit, 1]
        own = memory.heads + head * at.num_bytes
        entry = memory.walk.ctypes.data + 8 * PIECES_A_UNIT * unit
        scores = own + at.scores + 4 * token
        score_unit(own + at.q, entry, scores, num_rows, idle, kv, head_dim, way)
        if token + UNIT_TOKENS >= tile.stop - tile.start:
            # A head at a time: memory delivers what was asked for while weights are computed.
            softmax_head(task, item, head, own, tile, kv, head_dim, way)


@kernel_part
def _values(
    task: Any, memory: Any, tile: Any, places: Any, kv: Any, head_dim: Any, way: Any
) -> None:
    """Adds the weighted values of a tile's tokens for all heads of the item."""
    literally(kv)
    literally(head_dim)
    literally(way)
    num_rows = task[f.GROUP_SIZE] * task[f.Q_LEN]
    at = head_memory(num_rows, head_dim)
    for unit in range(tile.num_units):
        token, head = places[unit, 0], places[unit, 1]
        own = memory.heads + head * at.num_bytes
        # Two ranges: what nobody sees may be NaN, which a weight of zero would not undo.
        for first, stop in ((tile.lowest, tile.hidden_from), (tile.hidden_to, tile.stop)):
            first = max(0, first - tile.start - token)
            stop = min(UNIT_TOKENS, min(stop, tile.stop) - tile.start - token)
            if first >= stop:
                continue
            weigh_unit(
                own + at.scores + WEIGHT_BYTES[way] * token,
                memory.walk.ctypes.data + 8 * PIECES_A_UNIT * (tile.num_units + unit),
                first,
                stop,
                own + at.acc,
                num_rows,
                memory.idle_walk.ctypes.data,
                memory.zeros,
                kv,
                head_dim,
                way,
            )
