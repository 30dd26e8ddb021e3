"""Parts of one task."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_attn.host.token_parts import PART_TOKENS, count_parts, part_tokens
from cpu_attn.kernel_task import NO_WINDOW, TILE_TOKENS


def _tokens(
    context_len: int, q_len: int, window: int, sink_tokens: int, num_parts: int
) -> list[tuple[int, int]]:
    return [
        part_tokens(context_len, q_len, window, sink_tokens, part, num_parts)
        for part in range(num_parts)
    ]


@settings(deadline=None)
@given(
    st.integers(1, 20_000),
    st.integers(1, 8),
    st.one_of(st.just(NO_WINDOW), st.integers(1, 20_000)),
    st.one_of(st.just(0), st.integers(0, 300)),
    st.integers(1, 17),
)
def test_parts_hold_every_visible_token_once(
    context_len: int, q_len: int, window: int, sink_tokens: int, num_workers: int
) -> None:
    q_len = min(q_len, context_len)
    num_parts = count_parts(context_len, q_len, window, sink_tokens, num_workers)
    assert 1 <= num_parts <= num_workers + 1
    held = np.zeros(context_len, dtype=int)
    for first, stop in _tokens(context_len, q_len, window, sink_tokens, num_parts):
        assert first < stop <= context_len
        assert first % TILE_TOKENS == 0
        held[first:stop] += 1
    assert held.max() == 1
    tokens = np.arange(context_len)
    positions = np.arange(context_len - q_len, context_len)[:, None]
    in_reach = (tokens > positions - window) | (tokens < sink_tokens)
    seen = ((tokens <= positions) & in_reach).any(axis=0)
    assert not (seen & (held == 0)).any()
    # What nobody sees is read to fill a tile that somebody does.
    assert set(tokens[held > 0] // TILE_TOKENS) == set(tokens[seen] // TILE_TOKENS)


def test_long_contexts_are_cut_for_all_workers() -> None:
    assert count_parts(PART_TOKENS * 2 - 1, 1, NO_WINDOW, 0, 4) == 1
    assert count_parts(PART_TOKENS * 2, 1, NO_WINDOW, 0, 4) == 2
    assert count_parts(PART_TOKENS * 100, 1, NO_WINDOW, 0, 4) == 4
    assert count_parts(PART_TOKENS * 100, 1, 64, 0, 4) == 1


def test_sink_tokens_apart_from_the_window_are_a_part_of_their_own() -> None:
    assert _tokens(5000, 1, 100, 4, 2) == [(0, 4), (4864, 5000)]
    assert count_parts(5000, 1, 100, 4, 1) == 2


def test_parts_that_cannot_be_made_are_empty() -> None:
    assert part_tokens(64, 1, NO_WINDOW, 0, 0, 2) == (0, 0)
    assert part_tokens(5000, 1, 100, 4, 0, 1) == (0, 0)
    assert part_tokens(5000, 1, NO_WINDOW, 0, 3, 3) == (0, 0)
    assert part_tokens(5000, 1, NO_WINDOW, 0, -1, 3) == (0, 0)
    assert part_tokens(5000, 1, NO_WINDOW, 0, 0, 0) == (0, 0)
