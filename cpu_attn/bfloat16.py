"""bfloat16 in numpy, which has no such type: its bits as uint16, the upper half of a float32's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAN = np.uint16(0x7FC0)


def to_bfloat16(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of floating-point numbers of any shape, rounded to the nearest even.

    What is too large becomes an infinity, NaN stays NaN. float64 is taken by way of float32.
    Raises TypeError for other dtypes.
    """
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        raise TypeError(f"numbers: {_kind(numbers)}, a floating-point array is needed")
    with np.errstate(over="ignore", invalid="ignore"):
        singles = numbers.astype(np.float32)
    bits = singles.view(np.uint32)
    # Odd ones get half a step, even ones a bit less, and a carry may run into the exponent.
    halves = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
    # NaN may have its mark in the lower half alone, and the carry could take its sign.
    return np.where(np.isnan(singles), _NAN, halves.astype(np.uint16))


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers, exactly, of bits of any shape. Raises TypeError where they are not uint16."""
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint16:
        raise TypeError(f"bits: {_kind(bits)}, a uint16 array is needed")
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _kind(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__))
