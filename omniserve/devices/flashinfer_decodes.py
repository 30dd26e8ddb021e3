"""FlashInfer's attention of decode rows inside a captured graph.

Unproven on hardware: written from FlashInfer's public documentation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBatch
from omniserve.devices.kv_write import KvWriter
from omniserve.devices.page_table import PageTable
from omniserve.devices.pinned import to_device


class FlashInferDecodes:
    """A wrapper for every window; `fill` plans them, `run` launches what a graph records."""

    def __init__(
        self,
        kv_cache: Tensor,
        windows: Sequence[int | None],
        num_heads: int,
        padding: AttentionBatch,
        workspace: Tensor,
    ) -> None:
        """workspace: scratch memory, which others may use as well before and after a run."""
        import flashinfer

        self._kv_cache = kv_cache
        self._windows = tuple(windows)
        self._num_heads = num_heads
        self._writer = KvWriter(kv_cache)
        self._writes = self._writer.plan(padding)
        num_rows, table_width = padding.decode_block_tables.shape
        offsets, pages, last_lens = (
            torch.zeros(size, dtype=torch.int32, device=kv_cache.device)
            for size in (num_rows + 1, num_rows * table_width, num_rows)
        )
        self._wrappers: dict[int | None, Any] = {
            window: flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                workspace,
                kv_layout="HND",
                use_cuda_graph=True,
                # The kernels for many query heads a KV head, as in the call for ragged rows.
                use_tensor_cores=True,
                paged_kv_indptr_buffer=offsets,
                paged_kv_indices_buffer=pages,
                paged_kv_last_page_len_buffer=last_lens,
            )
            for window in set(self._windows)
        }
        self._planned: torch.Event | None = None
        self.fill(padding)

    def fill(self, batch: AttentionBatch) -> None:
        for kept, planned in zip(self._writes, self._writer.plan(batch), strict=True):
            kept.copy_(planned)
        if self._planned is not None:
            # A wrapper plans in pinned memory of its own. The copy from there belongs to a step
            # that runs already, so this is hardly ever a wait.
            self._planned.synchronize()
        self._plan_wrappers(PageTable.of(batch, self._kv_cache.shape[4]))
        self._planned = torch.Event(device=self._kv_cache.device)
        self._planned.record()

    def _plan_wrappers(self, table: PageTable) -> None:
        _, _, _, num_kv_heads, block_size, head_dim = self._kv_cache.shape
        # FlashInfer waits for its copy of pages that lie on the host, of other arrays not.
        pages = to_device(table.pages.numpy(), self._kv_cache.device)
        for window, wrapper in self._wrappers.items():
            wrapper.plan(
                table.offsets,
                pages,
                table.last_lens,
                self._num_heads,
                num_kv_heads,
                head_dim,
                block_size,
                window_left=-1 if window is None else window - 1,
                q_data_type=self._kv_cache.dtype,
                kv_data_type=self._kv_cache.dtype,
            )

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._writer.run(self._writes, layer, k, v)
        wrapper = self._wrappers[self._windows[layer]]
        out: Tensor = wrapper.run(q.contiguous(), self._kv_cache[layer])
        return out.flatten(1)
