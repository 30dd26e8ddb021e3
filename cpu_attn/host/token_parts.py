"""How the tokens of one task are cut into parts for several workers, compiled."""

from numba import types

from cpu_attn._jit import compiled
from cpu_attn.kernel_task import TILE_TOKENS

PART_TOKENS = 1024
"""Fewer are not worth waking another worker, and the merge."""

_i64 = types.int64


@compiled(types.UniTuple(_i64, 2)(_i64, _i64, _i64, _i64))
def visible_tokens(context_len: int, q_len: int, window: int, sink_tokens: int) -> tuple[int, int]:
    """(sink_stop, first): some query token sees [0, sink_stop) and [first, context_len).

    `first` is a multiple of TILE_TOKENS; sink_stop is 0 where no tile lies between the two.
    """
    first = max(0, context_len - q_len - window + 1) // TILE_TOKENS * TILE_TOKENS
    if first <= (sink_tokens + TILE_TOKENS - 1) // TILE_TOKENS * TILE_TOKENS and sink_tokens:
        return 0, 0
    return sink_tokens, first


@compiled(_i64(_i64, _i64, _i64, _i64, _i64))
def count_parts(
    context_len: int, q_len: int, window: int, sink_tokens: int, num_workers: int
) -> int:
    """Parts of a task: up to num_workers, and one for sink tokens that lie apart."""
    sink_stop, first = visible_tokens(context_len, q_len, window, sink_tokens)
    num_parts = max(1, min(num_workers, (context_len - first) // PART_TOKENS))
    return int(num_parts + 1 if sink_stop else num_parts)


@compiled(types.UniTuple(_i64, 2)(_i64, _i64, _i64, _i64, _i64, _i64))
def part_tokens(
    context_len: int, q_len: int, window: int, sink_tokens: int, part: int, num_parts: int
) -> tuple[int, int]:
    """First and stop token of a part; (0, 0) where so many parts cannot be made."""
    sink_stop, first = visible_tokens(context_len, q_len, window, sink_tokens)
    if sink_stop:
        if part == 0:
            return 0, sink_stop if num_parts > 1 else 0
        part, num_parts = part - 1, num_parts - 1
    num_tiles = (context_len - first + TILE_TOKENS - 1) // TILE_TOKENS
    if not 0 <= part < num_parts <= num_tiles:
        return 0, 0
    start = first + num_tiles * part // num_parts * TILE_TOKENS
    stop = first + num_tiles * (part + 1) // num_parts * TILE_TOKENS
    return start, min(context_len, stop)
