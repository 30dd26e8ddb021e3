"""bfloat16 in numpy against what the definition says, over every pattern and its neighbours."""

import numpy as np
import pytest
from naive_paged_attention import decode, encode

from cpu_attn import Element, from_bfloat16, to_bfloat16

# Signalling NaNs are among the patterns, and numpy says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
PATTERNS = np.arange(1 << 16).astype(np.uint16)


def test_every_pattern_is_widened_without_error_and_comes_back() -> None:
    numbers = from_bfloat16(PATTERNS)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, decode(PATTERNS, Element.BFLOAT16))
    is_nan = np.isnan(numbers)
    np.testing.assert_array_equal(to_bfloat16(numbers)[~is_nan], PATTERNS[~is_nan])
    assert np.isnan(from_bfloat16(to_bfloat16(numbers[is_nan]))).all()


def test_numbers_are_rounded_to_the_nearest_even() -> None:
    numbers = from_bfloat16(PATTERNS)
    finite = np.unique(numbers[np.isfinite(numbers)])
    middles = (finite[1:] / 2 + finite[:-1] / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    for drawn in (middles, *near):
        np.testing.assert_array_equal(to_bfloat16(drawn), encode(drawn, Element.BFLOAT16))
    largest = np.array([np.finfo(np.float32).max, 1e300])
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(largest)), [np.inf, np.inf])


def test_nan_stays_nan_whichever_bits_it_has() -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], dtype=np.uint32)
    assert np.isnan(from_bfloat16(to_bfloat16(bits.view(np.float32)))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_shape_strides_and_precision(dtype: type[np.floating]) -> None:
    numbers = np.arange(24, dtype=dtype).reshape(2, 3, 4)[:, ::-1, ::2]
    bits = to_bfloat16(numbers)
    assert bits.dtype == np.uint16 and bits.shape == (2, 3, 2)
    np.testing.assert_array_equal(from_bfloat16(bits.T), numbers.T)
    assert from_bfloat16(to_bfloat16(np.array(3.0))) == 3.0


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="numbers: int64, a floating-point array is needed"):
        to_bfloat16(np.zeros(2, dtype=np.int64))
    with pytest.raises(TypeError, match="numbers: list"):
        to_bfloat16([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bits: int16, a uint16 array is needed"):
        from_bfloat16(np.zeros(2, dtype=np.int16))
