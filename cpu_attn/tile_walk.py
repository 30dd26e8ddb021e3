"""The order in which a tile's keys and values are read, known ahead so that it can be prefetched."""

from typing import Any

from cpu_attn import kernel_task as f
from cpu_attn._jit import compiled
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.memory import load_i32
from cpu_attn.tile_loops import UNIT_TOKENS


@compiled(None)
def list_units(
    task: Any, item: Any, first: Any, stop: Any, page_bytes: Any, keys: Any, heads: Any, tokens: Any
) -> Any:
    """Units of UNIT_TOKENS keys over positions first .. stop - 1 of one tile, in memory order.

    Writes the address of each, its head (of the item's) and its first token (of the tile), and
    gives back how many there are. The values of a unit lie num_kv_heads * page_bytes behind.
    """
    sequence = load_i32(item + 4 * f.SEQUENCE)
    first_head = load_i32(item + 4 * f.FIRST_HEAD)
    num_heads = load_i32(item + 4 * f.HEADS)
    block_size = task[f.BLOCK_SIZE]
    unit_bytes = page_bytes // block_size * UNIT_TOKENS
    table = task[f.TABLES] + task[f.TABLE_STRIDE] * sequence
    count = 0
    position = first // UNIT_TOKENS * UNIT_TOKENS
    while position < stop:
        # As much of the tile as one block holds.
        block = position // block_size
        block_stop = min(stop, (block + 1) * block_size)
        page = task[f.CACHE] + load_i32(table + 4 * block) * task[f.BLOCK_STRIDE]
        page += first_head * page_bytes
        inside = (position - block * block_size) // UNIT_TOKENS
        num_units = (block_stop - position + UNIT_TOKENS - 1) // UNIT_TOKENS
        for head in range(num_heads):
            for unit in range(num_units):
                keys[count] = page + head * page_bytes + (inside + unit) * unit_bytes
                heads[count] = head
                tokens[count] = position % TILE_TOKENS + unit * UNIT_TOKENS
                count += 1
        position += num_units * UNIT_TOKENS
    return count
