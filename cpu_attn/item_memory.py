"""What one thread keeps while it works on items, and where in its scratch."""

from typing import Any, NamedTuple

from cpu_attn._jit import kernel_part
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.tile_loops import SCORE_ROW_BYTES


class ThreadMemory(NamedTuple):
    """What a thread keeps from item to item."""

    heads: Any
    """Address of one HeadMemory after the other."""
    zeros: Any
    """Address of a row of zeros, as values that nobody wrote."""
    walk: Any
    """int64 addresses of pieces: keys of a tile, its values, keys of the next tile."""
    places: Any
    """int64 [2, units, 2]: first token and head of each unit, of this tile and the next."""
    idle_walk: Any
    """int64 addresses of pieces that are in the cache, for whom there is nothing to ask for."""


class Tile(NamedTuple):
    """Positions start .. stop - 1 of a sequence; the first that counts is `lowest`.

    Positions hidden_from .. hidden_to - 1 lie between sink tokens and the window: no row sees them.
    """

    start: Any
    lowest: Any
    hidden_from: Any
    hidden_to: Any
    stop: Any
    num_units: Any


class HeadMemory(NamedTuple):
    """Offsets in bytes from the start of a head's memory; rows are query tokens times heads."""

    q: int
    scores: int
    acc: int
    state: int
    """Running maximum and sum of each row, float32 both."""
    key_scales: int
    value_scales: int
    num_bytes: int


@kernel_part
def head_memory(num_rows: Any, head_dim: Any) -> Any:
    row_bytes = 4 * head_dim
    scores = num_rows * row_bytes
    acc = scores + num_rows * SCORE_ROW_BYTES
    state = acc + num_rows * row_bytes
    key_scales = (state + 8 * num_rows + 63) // 64 * 64
    value_scales = key_scales + 4 * TILE_TOKENS
    num_bytes = value_scales + 4 * TILE_TOKENS
    return HeadMemory(
        q=0,
        scores=scores,
        acc=acc,
        state=state,
        key_scales=key_scales,
        value_scales=value_scales,
        num_bytes=num_bytes,
    )
