"""How the attention of one batch is cut into items that threads take one after the other.

An item is a range of KV heads of one sequence over a range of its tokens. Ranges of tokens give
partial results, which the thread that finishes last merges; ranges of heads need no merge, but
their pages are shorter runs of memory, so tokens are cut first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu_attn.kernel_task import (
    FIRST_HEAD,
    FIRST_PART,
    FIRST_TOKEN,
    GROUP,
    HEADS,
    ITEM_FIELDS,
    NUM_PARTS,
    PART,
    SEQUENCE,
    STOP_TOKEN,
    TILE_TOKENS,
)

ITEMS_PER_THREAD = 4
"""So that a thread that was held up delays the others by a fraction of its share only."""
MIN_PART_TOKENS = 8 * TILE_TOKENS
"""Shorter parts would spend their time on merging."""
MAX_PART_TOKENS = 32 * TILE_TOKENS
"""Sums of a part are float32; over more tokens equal values would be off by more than 2e-6."""

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """Items with the numbers of partial results and groups that they refer to."""

    items: NDArray[np.int32]
    """[num_items, ITEM_FIELDS], C-contiguous, the largest items first."""
    num_parts: int
    """Partial results to make room for."""
    parts_per_group: NDArray[np.int32]
    """What PARTS_LEFT starts from."""

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_results(self) -> int:
        """What NUM_FINISHED is raised by: whole items and merged groups."""
        return int(np.count_nonzero(self.items[:, FIRST_PART] < 0)) + len(self.parts_per_group)


def visible_tokens(
    context_lens: NDArray[np.int32], *, q_len: int, window: int | None, sink_tokens: int
) -> tuple[_Ints, _Ints]:
    """Positions that some query token sees, in whole tiles, for each sequence.

    They are [0, sink_stops) and [firsts, context_len); sink_stops is 0 where the two would touch
    and are one. Returns (sink_stops, firsts).
    """
    context = context_lens.astype(np.int64)
    if window is None:
        return np.zeros_like(context), np.zeros_like(context)
    firsts = np.maximum(context - q_len - window + 1, 0) // TILE_TOKENS * TILE_TOKENS
    apart = firsts > -(-sink_tokens // TILE_TOKENS) * TILE_TOKENS
    return np.where(apart, sink_tokens, 0), np.where(apart, firsts, 0)


def plan_items(
    context_lens: NDArray[np.int32],
    *,
    num_kv_heads: int,
    q_len: int = 1,
    window: int | None = None,
    sink_tokens: int = 0,
    num_threads: int = 1,
) -> WorkPlan:
    """Cuts a batch into about ITEMS_PER_THREAD items a thread, in proportion to their tokens.

    context_lens: int32 [num_sequences], each at least q_len. A query token sees the last `window`
    positions up to its own (all of them if None) and the first sink_tokens. The same arguments
    give the same plan, so results do not depend on which thread does what.
    """
    context = context_lens.astype(np.int64)
    sink_stops, firsts = visible_tokens(
        context_lens, q_len=q_len, window=window, sink_tokens=sink_tokens
    )
    tokens = sink_stops + context - firsts
    num_items = ITEMS_PER_THREAD * num_threads if num_threads > 1 else 0
    total = max(1, int(tokens.sum()))
    shares = np.maximum(1, _ceil_div(tokens * num_items, total))
    is_short = (context - firsts).max(initial=0) <= MAX_PART_TOKENS
    if is_short and shares.max(initial=1) == 1 and not sink_stops.any():
        return _uncut(context, firsts, num_kv_heads)

    # Segments are runs of tokens: one a sequence, or two where a gap lies between them.
    begins = np.stack((np.zeros_like(firsts), firsts), axis=1).ravel()
    ends = np.stack((sink_stops, context), axis=1).ravel()
    kept = ends > begins
    begins, ends = begins[kept], ends[kept]
    sequences = np.repeat(np.arange(len(context)), 2)[kept]
    lengths = ends - begins
    most = np.maximum(1, lengths // MIN_PART_TOKENS)
    parts = np.clip(_ceil_div(lengths * num_items, total), 1, most)
    # One more than the quotient, as parts differ by a tile.
    parts = np.maximum(
        parts, np.where(lengths > MAX_PART_TOKENS, lengths // MAX_PART_TOKENS + 1, 1)
    )

    num_parts = np.bincount(sequences, weights=parts, minlength=len(context)).astype(np.int64)
    head_splits = np.clip(shares // num_parts, 1, num_kv_heads)
    return _cut(begins, ends, sequences, parts, num_parts, head_splits, num_kv_heads)


def _uncut(context: _Ints, firsts: _Ints, num_kv_heads: int) -> WorkPlan:
    """One item a sequence; apart from the rest because most steps of an engine end here."""
    items = np.zeros((len(context), ITEM_FIELDS), dtype=np.int32)
    items[:, SEQUENCE] = np.arange(len(context))
    items[:, HEADS] = num_kv_heads
    items[:, FIRST_TOKEN] = firsts
    items[:, STOP_TOKEN] = context
    items[:, FIRST_PART] = -1
    items[:, NUM_PARTS] = 1
    items[:, GROUP] = -1
    return WorkPlan(_largest_first(items), 0, np.zeros(0, dtype=np.int32))


def _cut(
    begins: _Ints,
    ends: _Ints,
    sequences: _Ints,
    parts: _Ints,
    num_parts: _Ints,
    head_splits: _Ints,
    num_kv_heads: int,
) -> WorkPlan:
    """Segments (begins, ends, sequences, parts) and what each sequence is cut into, as items."""
    is_cut = num_parts > 1
    first_parts = np.where(is_cut, _starts(np.where(is_cut, num_parts, 0)), -1)
    first_groups = _starts(np.where(is_cut, head_splits, 0))

    # One row a part, in the order of tokens.
    segment = np.repeat(np.arange(len(parts)), parts)
    within = np.arange(len(segment)) - _starts(parts)[segment]
    tiles = _ceil_div(ends - begins, TILE_TOKENS)[segment]
    sequence = sequences[segment]
    first = begins[segment] + TILE_TOKENS * (within * tiles // parts[segment])
    stop = begins[segment] + TILE_TOKENS * ((within + 1) * tiles // parts[segment])
    stop = np.minimum(stop, ends[segment])
    part = np.arange(len(segment)) - _starts(num_parts)[sequence]

    # Then one row an item.
    row = np.repeat(np.arange(len(segment)), head_splits[sequence])
    split = np.arange(len(row)) - _starts(head_splits[sequence])[row]
    owner = sequence[row]
    first_head = split * num_kv_heads // head_splits[owner]
    items = np.empty((len(row), ITEM_FIELDS), dtype=np.int32)
    items[:, SEQUENCE] = owner
    items[:, FIRST_HEAD] = first_head
    items[:, HEADS] = (split + 1) * num_kv_heads // head_splits[owner] - first_head
    items[:, FIRST_TOKEN] = first[row]
    items[:, STOP_TOKEN] = stop[row]
    items[:, FIRST_PART] = first_parts[owner]
    items[:, PART] = part[row]
    items[:, NUM_PARTS] = num_parts[owner]
    items[:, GROUP] = np.where(is_cut[owner], first_groups[owner] + split, -1)
    parts_per_group = np.repeat(num_parts[is_cut], head_splits[is_cut]).astype(np.int32)
    return WorkPlan(_largest_first(items), int(num_parts[is_cut].sum()), parts_per_group)


def _largest_first(items: NDArray[np.int32]) -> NDArray[np.int32]:
    """Small items at the end let the threads finish together."""
    sizes = (items[:, STOP_TOKEN] - items[:, FIRST_TOKEN]) * items[:, HEADS]
    return items[np.argsort(-sizes, kind="stable")]


def _starts(counts: _Ints) -> _Ints:
    """Where each run begins when runs of these lengths follow each other."""
    return np.cumsum(counts) - counts


def _ceil_div(a: _Ints, b: int) -> _Ints:
    return -(-a // b)
