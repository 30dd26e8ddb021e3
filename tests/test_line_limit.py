"""A limit on lines, against its definition: so many at once, so many a second, all are counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.calls.line_limit import LineLimit


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_then_some_a_second_and_the_next_tells_how_many_were_left_out() -> None:
    clock = Clock()
    limit = LineLimit(3, 2.0, clock)
    assert [limit.take() for _ in range(5)] == [0, 0, 0, None, None]
    clock.now_s += 0.5
    assert [limit.take() for _ in range(3)] == [2, None, None]
    clock.now_s += 1000
    assert [limit.take() for _ in range(4)] == [2, 0, 0, None]


@given(st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_burst_and_rate_and_none_is_forgotten(pauses_s: list[float]) -> None:
    clock = Clock()
    limit = LineLimit(4, 1.0, clock)
    taken_s: list[float] = []
    num_told = num_left_out = 0
    for pause_s in pauses_s:
        clock.now_s += pause_s
        answer = limit.take()
        num_left_out += answer is None
        if answer is not None:
            taken_s.append(clock.now_s)
            num_told += answer
            assert num_told == num_left_out
    for first in range(len(taken_s)):
        for last in range(first, len(taken_s)):
            allowed = 4 + taken_s[last] - taken_s[first]
            assert last - first + 1 <= allowed + 1e-6


@pytest.mark.parametrize("burst", [1, 20])
def test_who_stays_below_the_rate_is_never_left_out(burst: int) -> None:
    clock = Clock()
    limit = LineLimit(burst, 1.0, clock)
    for _ in range(100):
        clock.now_s += 1.0
        assert limit.take() == 0
