"""The few sizes that steps are padded to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.engine.step_shapes import lane_sizes, padded, row_sizes


@given(st.integers(1, 1000), st.data())
def test_sizes_hold_every_count_with_little_to_spare(most: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, most))
    for sizes, waste in ((row_sizes(most), 2), (lane_sizes(most), 4)):
        size = padded(count, sizes)
        assert count <= size <= min(most, max(waste * count, count + 3, waste))
        assert list(sizes) == sorted(set(sizes))
        with pytest.raises(IndexError):
            padded(most + 1, sizes)
