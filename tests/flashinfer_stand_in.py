"""What FlashInfer's documentation says of two of its wrappers, in plain torch.

It proves what we hand over, not FlashInfer: page tables, their order, windows, buffers.
"""

from typing import Any

import torch
from torch import Tensor


def _attend(
    q: Tensor,
    kv_cache: Tensor,
    query_offsets: Tensor,
    table: tuple[Tensor, Tensor, Tensor],
    window_left: int,
) -> Tensor:
    """Rows of each sequence are its last; pages are [2, num_kv_heads, page_size, head_dim]."""
    offsets, pages, last_lens = table
    page_size, out = kv_cache.shape[3], torch.empty_like(q)
    for sequence in range(len(last_lens)):
        mine = pages[offsets[sequence] : offsets[sequence + 1]].long()
        context = (len(mine) - 1) * page_size + int(last_lens[sequence])
        keys, values = kv_cache[mine].transpose(0, 1).transpose(1, 2).flatten(2, 3)[:, :, :context]
        rows = slice(int(query_offsets[sequence]), int(query_offsets[sequence + 1]))
        positions = torch.arange(context - (rows.stop - rows.start), context)[:, None]
        columns = torch.arange(context)
        sees = columns <= positions
        if window_left >= 0:
            sees &= columns >= positions - window_left
        out[rows] = torch.nn.functional.scaled_dot_product_attention(
            q[rows].transpose(0, 1), keys, values, attn_mask=sees, enable_gqa=True
        ).transpose(0, 1)
    return out


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str) -> None:
        assert kv_layout == "HND"

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert causal
        self._query_offsets = qo_indptr
        self._table = (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        self._cache_shape = (2, num_kv_heads, page_size, head_dim_qk)
        self._num_qo_heads = num_qo_heads
        self._window_left = window_left

    def run(self, q: Tensor, paged_kv_cache: Tensor) -> Tensor:
        assert tuple(paged_kv_cache.shape[1:]) == self._cache_shape
        assert q.shape[1] == self._num_qo_heads
        return _attend(q, paged_kv_cache, self._query_offsets, self._table, self._window_left)


class BatchDecodeWithPagedKVCacheWrapper:
    """With use_cuda_graph a run reads nothing but the buffers it was made with."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str,
        use_cuda_graph: bool,
        use_tensor_cores: bool,
        paged_kv_indptr_buffer: Tensor,
        paged_kv_indices_buffer: Tensor,
        paged_kv_last_page_len_buffer: Tensor,
    ) -> None:
        assert kv_layout == "HND"
        assert use_cuda_graph
        assert len(paged_kv_indptr_buffer) == len(paged_kv_last_page_len_buffer) + 1
        self._buffers = (
            paged_kv_indptr_buffer,
            paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer,
        )
        self._window_left: int | None = None

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert self._window_left in (None, window_left)
        assert len(last_page_len) == len(self._buffers[2]), "the batch size is fixed"
        self._window_left = window_left
        for buffer, given in zip(self._buffers, (indptr, indices, last_page_len), strict=True):
            assert given.dtype == buffer.dtype == torch.int32
            buffer[: len(given)].copy_(given)

    def run(self, q: Tensor, paged_kv_cache: Tensor) -> Tensor:
        assert self._window_left is not None, "planned before it is run"
        offsets = torch.arange(len(self._buffers[2]) + 1)
        return _attend(q, paged_kv_cache, offsets, self._buffers, self._window_left)


class Event:
    """Of a device that has done all at once."""

    def __init__(self, device: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass
