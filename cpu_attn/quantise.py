"""Keys and values as int8 with one scale a row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 127


def quantise(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 numbers [..., head_dim] and float32 scales [...] of `rows` [..., head_dim].

    The scale is the largest magnitude / 127, or 1 where that is 0; numbers are rounded half to
    even. A row that holds NaN or an infinity has a scale that is not finite, so that it reads as
    NaN, as it would from a floating-point cache. Raises TypeError where `rows` is not float32.
    """
    if rows.dtype != np.float32:
        raise TypeError(f"rows: dtype {rows.dtype}, float32 is needed")
    largest: NDArray[np.float32] = np.max(np.abs(rows), axis=-1)
    scales = largest / np.float32(LIMIT)
    scales = np.where(scales == 0, np.float32(1), scales)
    with np.errstate(invalid="ignore"):
        numbers: NDArray[np.float32] = rows / scales[..., None]
    np.rint(numbers, out=numbers)
    # Tiny scales are rounded so coarsely that a quotient may pass the limit.
    np.clip(numbers, -LIMIT, LIMIT, out=numbers)
    numbers[np.isnan(numbers)] = 0
    return numbers.astype(np.int8), scales


def dequantise(
    numbers: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """float32 rows [..., head_dim] of int8 numbers and their scales [...]."""
    with np.errstate(invalid="ignore"):
        rows: NDArray[Any] = np.multiply(numbers, scales[..., None], out=out, dtype=np.float32)
    return rows
