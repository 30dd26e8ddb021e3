"""Every bit pattern of a narrow element to float32, and numbers between its neighbours back."""

import ctypes
from typing import Any

import numpy as np
import pytest
from naive_paged_attention import DTYPES, decode, encode
from numba import types
from numpy.typing import NDArray

from cpu_attn._jit import c_callback
from cpu_attn.element import Element
from cpu_attn.row_conversion import convert_row

LENGTH = 256
NARROW = (Element.FLOAT16, Element.BFLOAT16)

# Signalling NaNs are among the patterns, and numpy says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
each_element = pytest.mark.parametrize("element", NARROW, ids=lambda element: element.name)


def convert(rows: NDArray[Any], source: Element, target: Element) -> NDArray[Any]:
    from_value, to_value = int(source), int(target)

    def run(source: Any, target: Any) -> None:
        convert_row(source, target, from_value, to_value, LENGTH)

    kernel = c_callback(types.void(types.int64, types.int64))(run)
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(kernel.address)
    result = np.empty(rows.shape, DTYPES[target])
    for start in range(0, len(rows), LENGTH):
        call(rows[start:].ctypes.data, result[start:].ctypes.data)
    return result


def every_pattern(element: Element) -> NDArray[Any]:
    num_bits = 8 * element.num_bytes
    return np.arange(1 << num_bits).astype(f"uint{num_bits}").view(DTYPES[element])


@each_element
def test_every_pattern_is_widened_without_error(element: Element) -> None:
    patterns = every_pattern(element)
    widened = convert(patterns, element, Element.FLOAT32).astype(np.float64)
    np.testing.assert_array_equal(widened, decode(patterns, element))


@each_element
def test_numbers_are_rounded_to_the_nearest_even(element: Element) -> None:
    exact = decode(every_pattern(element), element)
    finite = np.unique(exact[np.isfinite(exact)])
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    numbers = np.concatenate(
        [
            exact.astype(np.float32),
            middles,
            np.nextafter(middles, np.float32(np.inf)),
            np.nextafter(middles, np.float32(-np.inf)),
            bits.view(np.float32),
        ]
    )
    numbers = np.resize(numbers, -(-len(numbers) // LENGTH) * LENGTH)
    with np.errstate(over="ignore"):
        expected = decode(encode(numbers, element), element)
    stored = decode(convert(numbers, Element.FLOAT32, element), element)
    np.testing.assert_array_equal(stored, expected)
    zeros = stored == 0
    np.testing.assert_array_equal(np.signbit(stored[zeros]), np.signbit(numbers[zeros]))
