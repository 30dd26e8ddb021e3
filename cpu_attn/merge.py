"""Attention over parts of a context, put together as if it had been attended to at once."""

from functools import cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from cpu_attn._jit import compiled

_Floats = NDArray[np.float32]


def merge_partials(outs: _Floats, lses: _Floats) -> tuple[_Floats, _Floats]:
    """Merges partial results over disjoint sets of keys exactly, in the order given.

    outs: float32 [num_parts, ..., head_dim], each normalised over its own part. lses: float32
    [num_parts, ...], natural logarithms of the sums of exponentials; -inf where a part has no
    visible key, whose output is then not looked at. Returns (out [..., head_dim], lse [...]),
    0 and -inf where no part has any. Raises TypeError for other dtypes, ValueError for shapes.
    Outputs of other types are widened first: `from_bfloat16(out)`, or `astype` from float16.

    A context cut in two for `paged_attention`: it takes its query tokens for the last ones of what
    it is given, and masks by that. True of the part that ends the context; that one alone gets
    `sinks`, new_k and new_v, its context_lens count its own tokens, and its window is the whole's.
    In an earlier part each query token must be a sequence of its own with q_len 1, for all see the
    part to its end: q [n * q_len, 1, num_heads, head_dim], tables and lengths repeated. There a
    window reaches back from the part's last token: for a query token d positions behind that one
    it is `window - d`, and where that is below 1 the token sees the sink tokens alone (the part is
    then no longer than these, without a window) or nothing (it is left out). `sink_tokens` go with
    the part that begins the context.
    """
    for name, array in (("outs", outs), ("lses", lses)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            found = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name}: {found}, a float32 array is needed")
    if outs.ndim < 2 or outs.shape[:-1] != lses.shape:
        raise ValueError(
            f"outs {outs.shape}, lses {lses.shape}: [num_parts, ..., head_dim] and "
            "[num_parts, ...] are needed"
        )
    num_parts = len(outs)
    if num_parts < 1:
        raise ValueError("outs: no part to merge, at least 1 is needed")
    head_dim = outs.shape[-1]
    rows = lses[0].size
    out = np.empty((rows, head_dim), dtype=np.float32)
    lse = np.empty(rows, dtype=np.float32)
    _kernel()(
        np.ascontiguousarray(outs).reshape(num_parts, rows, head_dim),
        np.ascontiguousarray(lses).reshape(num_parts, rows),
        out,
        lse,
    )
    return out.reshape(outs.shape[1:]), lse.reshape(lses.shape[1:])


@cache
def _kernel() -> Any:
    """Compiled on first use, not on import."""

    def merge(outs: _Floats, lses: _Floats, out: _Floats, lse: _Floats) -> None:
        num_parts, num_rows, head_dim = outs.shape
        sums = np.empty(head_dim, dtype=np.float64)
        for row in range(num_rows):
            highest = -np.inf
            for part in range(num_parts):
                highest = max(highest, np.float64(lses[part, row]))
            total = 0.0
            sums[:] = 0.0
            for part in range(num_parts):
                part_lse = np.float64(lses[part, row])
                # Its output may be anything: 0 times NaN would be NaN.
                if part_lse == -np.inf:
                    continue
                weight = np.exp(part_lse - highest)
                total += weight
                for i in range(head_dim):
                    sums[i] += weight * outs[part, row, i]
            if total == 0.0:
                out[row] = 0.0
                lse[row] = -np.inf
                continue
            for i in range(head_dim):
                out[row, i] = sums[i] / total
            lse[row] = highest + np.log(total)

    f32 = types.float32
    # Arrays that may be written to are taken for read-only ones, but not the other way round.
    outs, lses = (types.Array(f32, ndim, "C", readonly=True) for ndim in (3, 2))
    return compiled(types.void(outs, lses, f32[:, ::1], f32[::1]))(merge)
