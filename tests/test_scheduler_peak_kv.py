"""Peak KV by hand and by simulation, and the lengths that it rests on."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.length_history import LengthHistory
from scheduler.peak_kv import peak_tokens


@pytest.mark.parametrize(
    ("requests", "peak"),
    [
        ([], 0),
        ([(10, 5)], 15),
        # Both grow to the end of the shorter one: 10 + 5 and 20 + 5; then 10 + 8 alone.
        ([(10, 8), (20, 5)], 40),
        # The short one is gone before the long one is long: 1 + 100 against 50 + 1 + 2 x 1.
        ([(1, 100), (50, 1)], 101),
        # One that is about to end frees more than all others add.
        ([(100, 0), (10, 30), (10, 30)], 120),
    ],
)
def test_by_hand(requests: list[tuple[int, int]], peak: int) -> None:
    assert peak_tokens(requests) == peak


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), max_size=12))
def test_token_by_token(requests: list[tuple[int, int]]) -> None:
    """Everyone gets a token at a time; whoever has all of them lets go of everything."""
    peak = 0
    for step in range(41):
        alive = [held + step for held, to_come in requests if to_come >= step]
        peak = max(peak, sum(alive))
    assert peak_tokens(requests) == peak


def test_lengths_are_of_those_that_went_on_for_longer() -> None:
    history, random = LengthHistory(), Random(1)
    for length in (5, 50, 500):
        history.note(length)
    assert {history.draw(0, 1000, random) for _ in range(100)} == {5, 50, 500}
    assert {history.draw(5, 1000, random) for _ in range(100)} == {50, 500}
    assert {history.draw(60, 100, random) for _ in range(20)} == {100}
    assert history.draw(500, 777, random) == 777


def test_without_history_the_longest_is_expected() -> None:
    assert LengthHistory().draw(0, 64, Random(1)) == 64


def test_what_is_long_past_is_forgotten() -> None:
    history, random = LengthHistory(), Random(1)
    for _ in range(200):
        history.note(1000)
    for _ in range(200):
        history.note(10)
    assert len(history) == 200
    assert {history.draw(0, 5000, random) for _ in range(50)} == {10}
