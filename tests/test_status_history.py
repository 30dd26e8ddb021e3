"""What is remembered of the last minutes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.status.history import MAX_SAMPLES, Sample, StatusHistory

CHAT, BATCH = ("demo", "chat"), ("demo", "batch")


def make_sample(at_s: float, chat: int = 0, batch: int = 0, kv_share: float = 0.0) -> Sample:
    return Sample(at_s, {CHAT: chat, BATCH: batch}, {"demo": kv_share}, busy_share=0.25)


def series_of(document: dict[str, Any], name: str) -> dict[str, list[float]]:
    return {each.get("tier", each["model"]): each["points"] for each in document[name]}


def test_a_rate_needs_two_samples() -> None:
    history = StatusHistory()
    assert history.tokens_per_s() == {}
    history.add(make_sample(1.0, chat=10))
    assert history.tokens_per_s() == {}
    history.add(make_sample(2.0, chat=14))
    assert history.tokens_per_s() == {CHAT: 4.0, BATCH: 0.0}


def test_rates_are_of_the_last_seconds() -> None:
    history = StatusHistory()
    for second in range(20):
        history.add(make_sample(float(second), chat=min(second, 10) * 100, batch=second))
    assert history.tokens_per_s() == {CHAT: 0.0, BATCH: 1.0}


def test_after_a_pause_the_rate_is_that_of_the_pause() -> None:
    history = StatusHistory()
    history.add(make_sample(0.0, chat=0))
    history.add(make_sample(100.0, chat=50))
    assert history.tokens_per_s()[CHAT] == 0.5


def test_the_document_holds_differences_and_leaves_out_what_was_zero() -> None:
    history = StatusHistory()
    for second, chat in enumerate((0, 3, 3, 10)):
        history.add(make_sample(float(second), chat=chat, kv_share=second / 10))
    document = history.document()
    assert document["num_points"] == 3
    assert series_of(document, "output_tokens_per_s") == {"chat": [3.0, 0.0, 7.0]}
    assert series_of(document, "kv_shares") == {"demo": [0.1, 0.2, 0.3]}
    assert document["busy_share"] == [0.25] * 3


def test_a_tier_that_came_later_counts_from_then_on() -> None:
    history = StatusHistory()
    history.add(Sample(0.0, {}, {}, 0.0))
    history.add(Sample(1.0, {CHAT: 5}, {}, 0.0))
    history.add(Sample(2.0, {CHAT: 7}, {"demo": 0.5}, 0.0))
    document = history.document()
    assert series_of(document, "output_tokens_per_s") == {"chat": [5.0, 2.0]}
    assert series_of(document, "kv_shares") == {"demo": [0.0, 0.5]}


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=MAX_SAMPLES + 50))
def test_nothing_but_the_oldest_is_lost(gains: list[int]) -> None:
    history, total = StatusHistory(), 0
    for second, gain in enumerate(gains):
        total += gain
        history.add(make_sample(float(second), chat=total))
    kept = gains[1:][-(MAX_SAMPLES - 1) :]
    points = series_of(history.document(), "output_tokens_per_s").get("chat", [0.0] * len(kept))
    assert points == pytest.approx(kept)


def test_a_clock_that_stands_still_is_survived() -> None:
    history = StatusHistory()
    history.add(make_sample(1.0, chat=1))
    history.add(make_sample(1.0, chat=2))
    assert history.tokens_per_s() == {CHAT: 0.0, BATCH: 0.0}
