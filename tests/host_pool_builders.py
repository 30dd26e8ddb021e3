"""Small KV pools, and rows to put into them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.element import Element
from cpu_attn.host.pool import HostKvPool
from cpu_attn.kv_layout import KvLayout

ELEMENTS = list(Element)


def make_layout(element: Element = Element.FLOAT32, **changes: int) -> KvLayout:
    shape = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "block_size": 16}
    return KvLayout(element, **(shape | changes))


def make_pool(
    element: Element = Element.FLOAT32, num_blocks: int = 8, **changes: int
) -> HostKvPool:
    layout = make_layout(element, **changes)
    return HostKvPool(layout, num_blocks * layout.block_bytes)


def handed_over(element: Element, values: NDArray[np.float64]) -> NDArray[Any]:
    """Numbers of any size as what the pool takes; uint16 bits are numbers like any others here."""
    if element is Element.BFLOAT16:
        return (values.astype(np.int64) & 0xFFFF).astype(np.uint16)
    return values.astype(np.float16 if element is Element.FLOAT16 else np.float32)


def read_back(element: Element, rows: NDArray[Any]) -> NDArray[np.float64]:
    """What must come back of what was handed over."""
    values = rows.astype(np.float64)
    if element is not Element.INT8:
        return values
    largest = np.abs(values).max(axis=-1, keepdims=True)
    return np.asarray(np.round(values * 127 / largest) * largest / 127)


def draw_pages(pool: HostKvPool, num_blocks: int, seed: int = 0) -> NDArray[Any]:
    """Integers whose INT8 scales are powers of two, so that no rounding is a close call."""
    layout, random = pool.layout, np.random.default_rng(seed)
    shape = (layout.num_layers, num_blocks, 2, layout.num_kv_heads, layout.block_size)
    values = random.integers(-127, 128, (*shape, layout.head_dim))
    values[..., 0] = 127
    values *= 1 << random.integers(0, 4, (*shape, 1))
    values[..., 1:] += random.integers(-3, 4, (*shape, layout.head_dim - 1))
    np.clip(values, -values[..., :1], values[..., :1], out=values)
    return handed_over(layout.element, values.astype(np.float64))
