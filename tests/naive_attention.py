"""Attention written as plainly as possible, in float64."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attend(q: Array, keys: Array, values: Array, scale: float, window: int | None) -> Array:
    """q [rows, heads, dim] are the last rows of a context keys, values [context, kv_heads, dim]."""
    num_rows, num_heads, _ = q.shape
    context_len, num_kv_heads, _ = keys.shape
    out = np.zeros_like(q)
    for row in range(num_rows):
        position = context_len - num_rows + row
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            scores = keys[first : position + 1, kv_head] @ q[row, head] * scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[first : position + 1, kv_head] / weights.sum()
    return out
