"""Paged attention with torch's scaled_dot_product_attention: right on every device and dtype."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omniserve.devices.attention import AttentionBatch, Chunk, IntArray
from omniserve.devices.chunk_attention import Window, chunk_attention_for
from omniserve.devices.kv_write import KvWriter


@dataclass(frozen=True, slots=True)
class _ChunkPlan:
    chunk: Chunk
    pages: Tensor
    """Indices [2, num_kv_heads * num_blocks] of the chunk's key and value pages."""


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    num_decodes: int
    writes: tuple[Tensor, Tensor]
    decode_pages: Tensor | None
    """Indices [2, num_decodes * num_kv_heads * max_blocks] of key and value pages."""
    decode_masks: dict[Window, Tensor]
    """By window: [num_decodes, 1, 1, max_context] of bool."""
    chunks: tuple[_ChunkPlan, ...]

    @property
    def decode_tensors(self) -> tuple[Tensor, ...]:
        """All that the decodes of this plan read."""
        assert self.decode_pages is not None
        return (*self.writes, self.decode_pages, *self.decode_masks.values())


class SdpaStaticDecodes:
    """Gathers `num_blocks` blocks of every row, however few it has."""

    def __init__(self, attention: "SdpaAttention", padding: AttentionBatch, num_blocks: int):
        self._attention = attention
        self._num_blocks = num_blocks
        self._plan = attention.plan(padding, num_blocks)

    def fill(self, batch: AttentionBatch) -> None:
        plan = self._attention.plan(batch, self._num_blocks)
        for kept, planned in zip(self._plan.decode_tensors, plan.decode_tensors, strict=True):
            kept.copy_(planned)

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._attention.run(self._plan, layer, q, k, v)


class SdpaAttention:
    """Gathers a sequence's pages, then calls SDPA; query heads of one KV head become its rows."""

    def __init__(self, kv_cache: Tensor, windows: Sequence[Window]) -> None:
        num_layers, _, _, self._num_kv_heads, self._block_size, self._head_dim = kv_cache.shape
        self._pages = kv_cache.view(num_layers, -1, self._block_size * self._head_dim)
        self._windows = tuple(windows)
        self._distinct_windows = tuple(set(windows))
        self._device = kv_cache.device
        self._writer = KvWriter(kv_cache)
        self._attend_chunk = chunk_attention_for(kv_cache)

    def plan(self, batch: AttentionBatch, num_decode_blocks: int | None = None) -> SdpaPlan:
        """num_decode_blocks: what decodes gather; None for what the longest of them needs."""
        decode_pages, decode_masks = None, {}
        if batch.num_decodes:
            tables = batch.decode_block_tables[:, : num_decode_blocks or self._num_blocks(batch)]
            # What lies past a row's end is gathered as well, and others may have no memory there.
            is_within = (
                np.arange(tables.shape[1]) * self._block_size < batch.decode_context_lens[:, None]
            )
            tables = np.where(is_within, tables, tables[:, :1])
            decode_pages = self._page_indices(tables)
            decode_masks = {
                window: self._decode_mask(batch.decode_context_lens, tables.shape[1], window)
                for window in self._distinct_windows
            }
        return SdpaPlan(
            num_decodes=batch.num_decodes,
            writes=self._writer.plan(batch),
            decode_pages=decode_pages,
            decode_masks=decode_masks,
            chunks=tuple(self._plan_chunk(chunk) for chunk in batch.chunks),
        )

    def context_size(self, batch: AttentionBatch) -> int:
        """Blocks, to the next power of two."""
        num_blocks = self._num_blocks(batch) if batch.num_decodes else 1
        table_width: int = batch.decode_block_tables.shape[1]
        return min(1 << (num_blocks - 1).bit_length(), table_width)

    def static_decodes(self, padding: AttentionBatch, context_size: int) -> SdpaStaticDecodes:
        return SdpaStaticDecodes(self, padding, context_size)

    def _num_blocks(self, batch: AttentionBatch) -> int:
        return -(-int(batch.decode_context_lens.max()) // self._block_size)

    def run(self, plan: SdpaPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._writer.run(plan.writes, layer, k, v)
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if plan.num_decodes:
            out[: plan.num_decodes] = self._decode(plan, layer, q[: plan.num_decodes])
        for chunk_plan in plan.chunks:
            first = chunk_plan.chunk.first_row
            rows = slice(first, first + chunk_plan.chunk.num_tokens)
            out[rows] = self._chunk(chunk_plan, layer, q[rows], k[rows], v[rows])
        return out

    def _page_indices(self, tables: IntArray) -> Tensor:
        """[2, rows * num_kv_heads * blocks] page indices of block tables [rows, blocks]."""
        blocks = torch.from_numpy(np.ascontiguousarray(tables)).to(self._device, torch.int64)
        heads = torch.arange(self._num_kv_heads, device=self._device)
        keys = (blocks[:, None, :] * (2 * self._num_kv_heads) + heads[None, :, None]).flatten()
        return torch.stack([keys, keys + self._num_kv_heads])

    def _decode_mask(self, context_lens: IntArray, num_blocks: int, window: Window) -> Tensor:
        lens = torch.from_numpy(context_lens).to(self._device)[:, None]
        positions = torch.arange(num_blocks * self._block_size, device=self._device)
        visible = positions < lens
        if window is not None:
            visible &= positions >= lens - window
        return visible[:, None, None, :]

    def _plan_chunk(self, chunk: Chunk) -> _ChunkPlan:
        return _ChunkPlan(chunk, self._page_indices(chunk.block_ids[None]))

    def _decode(self, plan: SdpaPlan, layer: int, q: Tensor) -> Tensor:
        assert plan.decode_pages is not None
        rows = plan.num_decodes
        shape = (rows, self._num_kv_heads, -1, self._head_dim)
        pages = self._pages[layer]
        keys = pages.index_select(0, plan.decode_pages[0]).view(shape)
        values = pages.index_select(0, plan.decode_pages[1]).view(shape)
        mask = plan.decode_masks[self._windows[layer]]
        # Slots past the context hold whatever an earlier request left; a NaN there outlives any
        # mask.
        hidden = ~mask.transpose(2, 3)
        keys.masked_fill_(hidden, 0)
        values.masked_fill_(hidden, 0)
        return F.scaled_dot_product_attention(
            q.reshape(shape), keys, values, attn_mask=mask
        ).reshape(rows, -1)

    def _chunk(self, plan: _ChunkPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunk = plan.chunk
        if chunk.start == 0:
            # All there is to see has just been computed.
            keys, values = k.transpose(0, 1), v.transpose(0, 1)
        else:
            shape = (self._num_kv_heads, -1, self._head_dim)
            pages = self._pages[layer]
            keys = pages.index_select(0, plan.pages[0]).view(shape)[:, : chunk.context_len]
            values = pages.index_select(0, plan.pages[1]).view(shape)[:, : chunk.context_len]
        return self._attend_chunk(q, keys, values, chunk.start, self._windows[layer])
