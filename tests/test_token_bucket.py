"""So many tokens a minute: exact in time, never more than that over any stretch of it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.access.token_bucket import TokenBucket

PER_MINUTE = 240
"""One token in a quarter of a second, which floats hold exactly."""
STEPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, PER_MINUTE)), max_size=40)
"""Quarters of a second to wait, and then tokens to ask for."""


@given(STEPS)
def test_no_stretch_of_time_gives_more_than_a_full_bucket_and_what_flows_in(
    steps: list[tuple[int, int]],
) -> None:
    bucket = TokenBucket(PER_MINUTE, 0.0)
    now, taken = 0, [(0, 0)]
    for num_quarters, num_tokens in steps:
        now += num_quarters
        if not bucket.wait_s(num_tokens, now / 4):
            bucket.take(num_tokens, now / 4)
            taken.append((now, num_tokens))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            given_out = sum(num for _, num in taken[first : last + 1])
            assert given_out <= PER_MINUTE + taken[last][0] - taken[first][0]


@given(STEPS)
def test_what_is_refused_is_there_after_the_wait_and_not_before(
    steps: list[tuple[int, int]],
) -> None:
    bucket = TokenBucket(PER_MINUTE, 0.0)
    now_s = 0.0
    for num_quarters, num_tokens in steps:
        now_s += num_quarters / 4
        wait_s = bucket.wait_s(num_tokens, now_s)
        if wait_s:
            assert bucket.wait_s(num_tokens, now_s + 0.99 * wait_s) > 0
            now_s += wait_s
            assert bucket.wait_s(num_tokens, now_s) == 0
        bucket.take(num_tokens, now_s)


@given(STEPS, st.integers(1, 1000))
def test_debts_are_paid_exactly(steps: list[tuple[int, int]], per_minute: int) -> None:
    """Taken without asking, as generated tokens are, against exact arithmetic."""
    bucket = TokenBucket(per_minute, 0.0)
    level, now = Fraction(per_minute), 0
    for num_quarters, num_tokens in steps:
        now += num_quarters
        level = min(Fraction(per_minute), level + Fraction(num_quarters * per_minute, 240))
        bucket.take(num_tokens, now / 4)
        level -= num_tokens
        expected_s = max(0.0, float((1 - level) * 60 / per_minute))
        assert bucket.wait_s(1, now / 4) == pytest.approx(expected_s, abs=1e-6)
        share = min(1.0, max(0.0, float(1 - level / per_minute)))
        assert bucket.used_share(now / 4) == pytest.approx(share, abs=1e-9)


def test_what_is_given_back_never_overfills() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(10, 0.0)
    bucket.give_back(10, 5.0)
    assert bucket.used_share(5.0) == 0.0
    bucket.take(60, 5.0)
    assert bucket.wait_s(1, 5.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("per_minute", "wait_s"), [(120, 0.0), (60, 0.0), (40, 15.0), (20, 90.0)])
def test_what_was_used_counts_against_another_size(per_minute: int, wait_s: float) -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(50, 0.0)
    bucket.resize(per_minute, 0.0)
    # Of 40 it has had 50, and has to wait for 10: and for no more than it may ever hold.
    assert bucket.wait_s(0, 0.0) == pytest.approx(wait_s)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.wait_s(1, 50.0) == pytest.approx(1.0)
    assert bucket.wait_s(1, 100.0) == pytest.approx(1.0)
