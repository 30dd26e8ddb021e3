"""Keys and values of blocks in shared memory: reading and writing them as numpy arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.element import Element
from cpu_attn.host.shared_memory import SharedMemory
from cpu_attn.kv_layout import KvLayout
from cpu_attn.quantise import dequantise, quantise


def page_dtype(element: Element) -> np.dtype[Any]:
    """What keys and values are handed over as: uint16 bits for BFLOAT16, float32 for INT8."""
    return np.dtype(np.float32) if element is Element.INT8 else element.dtype


def consecutive_runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Index ranges [start, stop) of `block_ids` in which each id is one more than the last."""
    breaks = np.flatnonzero(np.diff(np.asarray(block_ids, dtype=np.int64)) != 1) + 1
    edges = [0, *breaks.tolist(), len(block_ids)]
    return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if start < stop]


class KvArena:
    """Blocks of a layout, one after the other; callers have checked what they give."""

    def __init__(self, layout: KvLayout, num_blocks: int, memory: SharedMemory) -> None:
        """`memory` holds num_blocks * layout.block_bytes."""
        self._layout = layout
        strides = (
            layout.block_bytes,
            layout.layer_bytes,
            layout.values_offset,
            layout.page_bytes,
            layout.row_bytes,
            layout.element.num_bytes,
        )
        rows = (num_blocks, layout.num_layers, 2, layout.num_kv_heads, layout.block_size)
        self._numbers = memory.array(
            layout.element.dtype, (*rows, layout.head_dim), strides=strides
        )
        self._scales: NDArray[np.float32] | None = None
        if layout.has_scales:
            # A float32 for each row: their strides are 4 bytes where the rows' are row_bytes.
            in_layer = tuple(stride // layout.row_bytes * 4 for stride in strides[2:5])
            self._scales = memory.array(
                np.float32, rows, offset_bytes=layout.scales_offset, strides=strides[:2] + in_layer
            )

    def page_shape(self, num_blocks: int) -> tuple[int, ...]:
        """[num_layers, num_blocks, 2 (keys, values), num_kv_heads, block_size, head_dim]."""
        _, num_layers, *block = self._numbers.shape
        return (num_layers, num_blocks, *block)

    def write_token(
        self, block_id: int, layer: int, slot: int, k: NDArray[Any], v: NDArray[Any]
    ) -> None:
        """Keys and values [num_kv_heads, head_dim] of the `slot`-th token of a block."""
        rows = np.stack((k, v))
        if self._scales is not None:
            rows, self._scales[block_id, layer, :, :, slot] = quantise(rows)
        self._numbers[block_id, layer, :, :, slot] = rows

    def write_blocks(self, block_ids: Sequence[int], pages: NDArray[Any]) -> None:
        """`pages` as `page_shape` has it, one copy for each run of consecutive blocks."""
        for start, stop in consecutive_runs(block_ids):
            blocks = slice(block_ids[start], block_ids[start] + stop - start)
            if self._scales is None:
                self._numbers[blocks] = pages[:, start:stop].swapaxes(0, 1)
                continue
            # Layer by layer, so that what is being rounded stays small.
            for layer, rows in enumerate(pages[:, start:stop]):
                self._numbers[blocks, layer], self._scales[blocks, layer] = quantise(rows)

    def read_blocks(self, block_ids: Sequence[int]) -> NDArray[Any]:
        """New pages as `page_shape` has it, one copy for each run of consecutive blocks."""
        pages = np.empty(self.page_shape(len(block_ids)), page_dtype(self._layout.element))
        for start, stop in consecutive_runs(block_ids):
            blocks = slice(block_ids[start], block_ids[start] + stop - start)
            if self._scales is None:
                pages[:, start:stop].swapaxes(0, 1)[:] = self._numbers[blocks]
                continue
            for layer, rows in enumerate(pages[:, start:stop]):
                dequantise(self._numbers[blocks, layer], self._scales[blocks, layer], out=rows)
        return pages
