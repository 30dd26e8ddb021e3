"""Attention over a paged cache in float64, written down from its definition, and element types."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.element import Element

Array = NDArray[Any]
Floats = NDArray[np.float64]

DTYPES: dict[Element, Any] = {
    Element.FLOAT32: np.float32,
    Element.FLOAT16: np.float16,
    Element.BFLOAT16: np.uint16,
    Element.INT8: np.int8,
}


def encode(values: Floats, element: Element) -> Array:
    """To a floating-point element, rounded to nearest even."""
    if element is not Element.BFLOAT16:
        return values.astype(np.float32).astype(DTYPES[element])
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def decode(array: Array, element: Element) -> Floats:
    """The exact values of an array; int8 as they are, without scales."""
    if element is Element.BFLOAT16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def quantise(values: Floats) -> tuple[Array, NDArray[np.float32]]:
    """To int8 [..., head_dim] with float32 scales [...]: the largest magnitude becomes 127."""
    largest = np.abs(values.astype(np.float32)).max(axis=-1)
    scales = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    return np.rint(values / scales[..., None]).astype(np.int8), scales


def cache_values(kv_cache: Array, element: Element, kv_scales: Array | None) -> Floats:
    """[num_blocks, 2, num_kv_heads, block_size, head_dim] as numbers."""
    values = decode(kv_cache, element)
    return values if kv_scales is None else values * kv_scales.astype(np.float64)[..., None]


def sees(query_position: int, position: int, window: int | None, sink_tokens: int) -> bool:
    """Whether a token at query_position attends to one at position."""
    in_window = window is None or position > query_position - window
    return position <= query_position and (in_window or position < sink_tokens)


def attend(
    q: Floats,
    cache: Floats,
    block_tables: Array,
    context_lens: Array,
    *,
    scale: float,
    window: int | None,
    sink_tokens: int,
    sinks: Array | None,
) -> tuple[Floats, Floats]:
    """Outputs like q [num_sequences, q_len, num_heads, head_dim] and their log-sum-exp."""
    num_sequences, q_len, num_heads, _ = q.shape
    num_kv_heads, block_size = cache.shape[2:4]
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:3])
    for s in range(num_sequences):
        length = int(context_lens[s])
        positions = np.arange(length)
        slots = block_tables[s, positions // block_size], positions % block_size
        for t in range(q_len):
            mine = length - q_len + t
            seen = [p for p in range(length) if sees(mine, p, window, sink_tokens)]
            blocks, offsets = (each[seen] for each in slots)
            for h in range(num_heads):
                kv_head = h // (num_heads // num_kv_heads)
                keys = cache[blocks, 0, kv_head, offsets]
                values = cache[blocks, 1, kv_head, offsets]
                logits = keys @ q[s, t, h] * scale
                everything = logits if sinks is None else np.append(logits, float(sinks[h]))
                highest = everything.max()
                total = np.exp(everything - highest).sum()
                out[s, t, h] = np.exp(logits - highest) @ values / total
                lse[s, t, h] = highest + np.log(total)
    return out, lse
