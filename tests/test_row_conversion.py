"""Rows that the kernel quantises for an int8 cache, against numpy's own."""

import ctypes
from typing import Any

import numpy as np
import pytest
from numba import types

from cpu_attn._jit import c_callback
from cpu_attn.element import Element
from cpu_attn.quantise import quantise
from cpu_attn.row_conversion import quantise_row

LENGTH = 48
FLOAT32 = int(Element.FLOAT32)


@pytest.fixture(scope="module")
def quantise_one() -> Any:
    def run(source: Any, target: Any) -> Any:
        return quantise_row(source, target, FLOAT32, LENGTH)

    kernel = c_callback(types.float32(types.int64, types.int64))(run)
    call = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_int64)(kernel.address)

    def quantise_one(row: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
        numbers = np.empty(LENGTH, dtype=np.int8)
        scale = call(row.ctypes.data, numbers.ctypes.data)
        return numbers, scale

    quantise_one.kernel = kernel  # type: ignore[attr-defined]
    return quantise_one


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e4, 1e-44])
def test_rows_are_numpys(quantise_one: Any, spread: float) -> None:
    drawn = np.random.default_rng(3).standard_normal((200, LENGTH)) * spread
    rows = drawn.astype(np.float32)
    expected_numbers, expected_scales = quantise(rows)
    for row, expected, expected_scale in zip(rows, expected_numbers, expected_scales, strict=True):
        numbers, scale = quantise_one(row)
        assert scale == expected_scale
        np.testing.assert_array_equal(numbers, expected)


def test_zeros_have_a_scale_of_one(quantise_one: Any) -> None:
    numbers, scale = quantise_one(np.zeros(LENGTH, dtype=np.float32))
    assert scale == 1.0
    assert not numbers.any()


@pytest.mark.parametrize("place", [0, 17, LENGTH - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reads_as_nan(quantise_one: Any, place: int, value: float) -> None:
    row = np.ones(LENGTH, dtype=np.float32)
    row[place] = value
    _, scale = quantise_one(row)
    assert np.isnan(scale)
