"""Plans of work: every token that is seen is in one item, once, and the work is shared evenly."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_paged_attention import sees

from cpu_attn import work_items
from cpu_attn.kernel_task import (
    FIRST_HEAD,
    FIRST_PART,
    FIRST_TOKEN,
    GROUP,
    HEADS,
    NUM_PARTS,
    PART,
    SEQUENCE,
    STOP_TOKEN,
    TILE_TOKENS,
)
from cpu_attn.work_items import (
    ITEMS_PER_THREAD,
    MAX_PART_TOKENS,
    MIN_PART_TOKENS,
    WorkPlan,
    plan_items,
)


def plan(context_lens: list[int], **arguments: Any) -> WorkPlan:
    return plan_items(np.array(context_lens, dtype=np.int32), **({"num_kv_heads": 4} | arguments))


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    q_len = draw(st.integers(1, 8))
    length = st.one_of(st.integers(q_len, 700), st.integers(q_len, 20_000))
    return {
        "context_lens": draw(st.lists(length, max_size=12)),
        "q_len": q_len,
        "num_kv_heads": draw(st.sampled_from([1, 2, 3, 8])),
        "window": draw(st.none() | st.integers(1, 3000)),
        "sink_tokens": draw(st.sampled_from([0, 1, 4, 64, 100, 5000])),
        "num_threads": draw(st.integers(1, 9)),
    }


def tiles_seen(length: int, given: dict[str, Any]) -> set[int]:
    """By asking of every pair of query token and position."""
    queries = range(length - given["q_len"], length)
    return {
        position // TILE_TOKENS
        for position in range(length)
        if any(sees(q, position, given["window"], given["sink_tokens"]) for q in queries)
    }


@settings(max_examples=150, deadline=None)
@given(arguments())
def test_what_is_seen_is_attended_to_once(given: dict[str, Any]) -> None:
    items = plan(**given).items
    assert items.dtype == np.int32 and items.flags.c_contiguous
    covered: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for item in items.tolist():
        assert item[FIRST_TOKEN] < item[STOP_TOKEN] and item[HEADS] > 0
        assert item[FIRST_TOKEN] % TILE_TOKENS == 0
        for head in range(item[FIRST_HEAD], item[FIRST_HEAD] + item[HEADS]):
            covered[item[SEQUENCE], head].append((item[FIRST_TOKEN], item[STOP_TOKEN]))
    heads = range(given["num_kv_heads"])
    assert set(covered) == {(s, h) for s in range(len(given["context_lens"])) for h in heads}
    for (sequence, _), ranges in covered.items():
        length = given["context_lens"][sequence]
        tokens = [t for first, stop in ranges for t in range(first, stop)]
        assert len(tokens) == len(set(tokens)), "a token is attended to twice"
        tiles = {t // TILE_TOKENS for t in tokens}
        assert tiles == tiles_seen(length, given)
        queries = range(length - given["q_len"], length)
        seen = {
            p
            for tile in tiles
            for p in range(tile * TILE_TOKENS, min(length, (tile + 1) * TILE_TOKENS))
            if any(sees(q, p, given["window"], given["sink_tokens"]) for q in queries)
        }
        assert seen <= set(tokens)
        assert max(stop for _, stop in ranges) == length, "sinks belong to the item that ends there"


@settings(max_examples=150, deadline=None)
@given(arguments())
def test_parts_and_groups_are_numbered_without_gaps(given: dict[str, Any]) -> None:
    made = plan(**given)
    groups: dict[int, list[list[int]]] = defaultdict(list)
    num_whole = 0
    for item in made.items.tolist():
        if item[FIRST_PART] < 0:
            assert (item[PART], item[NUM_PARTS], item[GROUP]) == (0, 1, -1)
            num_whole += 1
        else:
            groups[item[GROUP]].append(item)
    assert sorted(groups) == list(range(len(made.parts_per_group)))
    used = set()
    for group, items in groups.items():
        items.sort(key=lambda item: item[PART])
        assert [item[PART] for item in items] == list(range(made.parts_per_group[group]))
        assert len(items) >= 2
        same = {(i[SEQUENCE], i[FIRST_HEAD], i[HEADS], i[FIRST_PART], i[NUM_PARTS]) for i in items}
        assert len(same) == 1 and items[0][NUM_PARTS] == len(items)
        starts = [item[FIRST_TOKEN] for item in items]
        assert starts == sorted(starts), "parts are not in the order of tokens"
        for item in items:
            for head in range(item[FIRST_HEAD], item[FIRST_HEAD] + item[HEADS]):
                used.add((item[FIRST_PART] + item[PART], head))
    heads = range(given["num_kv_heads"])
    assert used == {(part, head) for part in range(made.num_parts) for head in heads}
    assert made.num_results == num_whole + len(groups)


@settings(max_examples=100, deadline=None)
@given(arguments())
def test_cuts_are_long_and_not_many(given: dict[str, Any]) -> None:
    made = plan(**(given | {"window": None}))
    cut = made.items[made.items[:, FIRST_PART] >= 0]
    lengths = cut[:, STOP_TOKEN] - cut[:, FIRST_TOKEN]
    # Cuts are at multiples of a tile, so a part may fall short of the least by one.
    assert lengths.min(initial=MIN_PART_TOKENS) > MIN_PART_TOKENS - TILE_TOKENS
    wanted = ITEMS_PER_THREAD * given["num_threads"]
    longest = [context // MAX_PART_TOKENS for context in given["context_lens"]]
    assert made.num_items <= len(given["context_lens"]) + wanted + sum(longest)
    if given["num_threads"] == 1 and not any(longest):
        assert made.num_items == len(given["context_lens"]), "there is nobody to share with"


@settings(max_examples=100, deadline=None)
@given(arguments())
def test_no_part_is_so_long_that_its_sums_lose_digits(given: dict[str, Any]) -> None:
    items = plan(**given).items
    lengths = items[:, STOP_TOKEN] - items[:, FIRST_TOKEN]
    assert lengths.max(initial=0) <= MAX_PART_TOKENS


@pytest.mark.parametrize(
    ("context_lens", "num_threads", "expected"),
    [
        # One long sequence is cut by tokens, a short one by heads, some of each by both.
        ([8192], 2, (8, 8)),
        ([200], 2, (4, 0)),
        ([1100], 2, (8, 2)),
        ([1000] * 8, 2, (8, 0)),
        ([1000] * 256, 8, (256, 0)),
        # The long one alone is worth cutting.
        ([8192] + [100] * 20, 2, (21 + 6, 7)),
    ],
)
def test_examples(context_lens: list[int], num_threads: int, expected: tuple[int, int]) -> None:
    made = plan(context_lens, num_threads=num_threads)
    assert (made.num_items, made.num_parts) == expected


@pytest.mark.parametrize("num_threads", [2, 4, 8])
def test_long_sequences_are_shared_evenly(num_threads: int) -> None:
    """Threads that take the next item when they are done are late by one item's share at most."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(6000, 60_000, size=rng.integers(1, 12)).tolist()
        items = plan(lengths, num_threads=num_threads).items
        busy = [0] * num_threads
        for work in (items[:, STOP_TOKEN] - items[:, FIRST_TOKEN]) * items[:, HEADS]:
            busy[busy.index(min(busy))] += int(work)
        assert max(busy) <= (1 + 1.05 / ITEMS_PER_THREAD) * sum(busy) / num_threads


def test_a_gap_is_not_part_of_any_item() -> None:
    made = plan([10_000], window=100, sink_tokens=4)
    ranges = made.items[:, [FIRST_TOKEN, STOP_TOKEN, PART]].tolist()
    assert sorted(ranges) == [[0, 4, 0], [9856, 10_000, 1]]
    assert made.parts_per_group.tolist() == [2] and made.num_results == 1


def test_the_same_batch_gives_the_same_plan() -> None:
    first, second = (plan([5000, 70, 9000], num_threads=3) for _ in range(2))
    np.testing.assert_array_equal(first.items, second.items)


def test_an_empty_batch_has_no_items() -> None:
    made = plan([], num_threads=4)
    assert (made.num_items, made.num_parts, made.num_results) == (0, 0, 0)


def test_a_batch_with_nothing_to_cut_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> WorkPlan:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(work_items, "_cut", unexpected)
    assert plan([900 + i for i in range(256)], num_threads=2).num_items == 256
    assert plan([9000], window=500).num_items == 1
