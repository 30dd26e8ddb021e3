"""The order in which a tile's keys and values are read, known ahead so as to be prefetched."""

from typing import Any

from cpu_attn import kernel_task as f
from cpu_attn._jit import kernel_part
from cpu_attn.item_memory import Tile
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.memory import load_i32
from cpu_attn.tile_loops import PIECE_TOKENS, UNIT_TOKENS

PIECES_A_UNIT = UNIT_TOKENS // PIECE_TOKENS
PIECES_A_TILE = TILE_TOKENS // PIECE_TOKENS
"""Of one head."""


@kernel_part
def next_tile(task: Any, item: Any, start: Any, page_bytes: Any, walk: Any, places: Any) -> Any:
    """The tile from `start` on, its pieces and units listed; one without units at the item's end.

    Writes the address of each piece of keys to `walk` and, for each unit of UNIT_TOKENS, its first
    token in the tile and its head (of the item's) to `places`, in the order of memory. Values lie
    num_kv_heads * page_bytes behind their keys.
    """
    item_stop = load_i32(item + 4 * f.STOP_TOKEN)
    if start >= item_stop:
        return Tile(start, start, start, start, start, 0)
    stop = min(item_stop, start + TILE_TOKENS)
    sink_stop, seen = task[f.SINK_TOKENS], _first_in_window(task, item)
    has_sinks = start < sink_stop
    lowest = start if has_sinks else max(start, min(seen, start + TILE_TOKENS - 1))
    num_units = _list_units(task, item, lowest, stop, page_bytes, walk, places)
    if has_sinks and sink_stop < seen:
        return Tile(start, lowest, sink_stop, seen, stop, num_units)
    return Tile(start, lowest, stop, stop, stop, num_units)


@kernel_part
def _list_units(
    task: Any, item: Any, first: Any, stop: Any, page_bytes: Any, walk: Any, places: Any
) -> Any:
    """Lists the positions first .. stop - 1 of one tile; the number of units."""
    sequence = load_i32(item + 4 * f.SEQUENCE)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    num_heads = load_i32(item + 4 * f.HEADS)
    block_size = task[f.BLOCK_SIZE]
    piece_bytes = page_bytes // block_size * PIECE_TOKENS
    table = task[f.TABLES] + task[f.TABLE_STRIDE] * sequence
    count = 0
    position = first // UNIT_TOKENS * UNIT_TOKENS
    while position < stop:
        # As much of the tile as one block holds.
        block = position // block_size
        block_stop = min(stop, (block + 1) * block_size)
        page = task[f.CACHE] + load_i32(table + 4 * block) * task[f.BLOCK_STRIDE]
        page += first_head * page_bytes
        inside = (position - block * block_size) // PIECE_TOKENS * piece_bytes
        num_units = (block_stop - position + UNIT_TOKENS - 1) // UNIT_TOKENS
        for head in range(num_heads):
            address = page + head * page_bytes + inside
            for unit in range(num_units):
                places[count, 0] = position % TILE_TOKENS + unit * UNIT_TOKENS
                places[count, 1] = head
                for piece in range(PIECES_A_UNIT):
                    walk[PIECES_A_UNIT * count + piece] = address
                    address += piece_bytes
                count += 1
        position += num_units * UNIT_TOKENS
    return count


@kernel_part
def _first_in_window(task: Any, item: Any) -> Any:
    """The first position that the item's first row sees, sink tokens aside; may be negative."""
    sequence = load_i32(item + 4 * f.SEQUENCE)
    context_len = load_i32(task[f.CONTEXT_LENS] + 4 * sequence)
    return context_len - task[f.Q_LEN] + 1 - task[f.WINDOW]
