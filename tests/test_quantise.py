"""Quantised rows against a row at a time in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cpu_attn.quantise import dequantise, quantise

_rows = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


@given(_rows)
def test_numbers_are_the_nearest_on_the_row_s_grid(rows: np.ndarray) -> None:
    numbers, scales = quantise(rows)
    assert numbers.dtype == np.int8 and numbers.shape == rows.shape
    assert scales.dtype == np.float32 and scales.shape == rows.shape[:-1]
    for index in np.ndindex(*rows.shape[:-1]):
        row, scale = rows[index].astype(np.float64), float(scales[index])
        largest = np.abs(row).max()
        if largest < 127 * 1e-37:
            continue
        assert scale == pytest.approx(largest / 127, rel=1e-7)
        assert np.abs(numbers[index]).max() == 127
        error = np.abs(numbers[index] * scale - row)
        assert np.all(error <= scale * 0.5 * (1 + 1e-4))


def test_halves_are_rounded_to_even() -> None:
    rows = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5]], dtype=np.float32)
    numbers, scales = quantise(rows)
    assert scales.tolist() == [1.0]
    assert numbers.tolist() == [[127, 0, 2, 2, 0, -2, -2, 4]]


def test_a_row_of_zeros_has_scale_one() -> None:
    numbers, scales = quantise(np.zeros((2, 16), dtype=np.float32))
    assert scales.tolist() == [1.0, 1.0]
    assert not numbers.any()


@pytest.mark.parametrize("tiny", [1e-45, 1e-43, 2.6e-43, 1e-38])
def test_rows_too_small_for_an_exact_scale_keep_their_sign_and_range(tiny: float) -> None:
    row = np.array([[tiny, -tiny, 0.0]], dtype=np.float32)
    numbers, scales = quantise(row)
    assert np.isfinite(scales).all() and scales[0] > 0
    assert numbers[0, 0] == -numbers[0, 1] and 0 <= numbers[0, 0] <= 127
    assert np.abs(dequantise(numbers, scales) - row).max() <= max(tiny / 2, 1e-43)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_reads_as_nan_and_its_neighbours_do_not(bad: float) -> None:
    rows = np.ones((3, 16), dtype=np.float32)
    rows[1, 4] = bad
    read = dequantise(*quantise(rows))
    assert np.isnan(read[1]).all()
    assert np.allclose(read[[0, 2]], 1)


@given(_rows)
def test_quantising_what_was_read_changes_nothing(rows: np.ndarray) -> None:
    once = dequantise(*quantise(rows))
    np.testing.assert_allclose(dequantise(*quantise(once)), once, rtol=1e-6, atol=1e-43)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="rows: dtype float64, float32 is needed"):
        quantise(np.zeros((2, 16)))  # type: ignore[arg-type]
