"""Paged attention with FlashInfer on CUDA. Optional, and used where it is installed."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBatch
from omniserve.devices.kv_write import KvWriter

_WORKSPACE_BYTES = 128 << 20
_NUM_PLANS = 2


def is_usable(kv_cache: Tensor) -> bool:
    """Whether FlashInfer is installed and has kernels for this cache's dtype and head size."""
    return (
        importlib.util.find_spec("flashinfer") is not None
        and kv_cache.dtype in (torch.float16, torch.bfloat16)
        and kv_cache.shape[-1] in (64, 128, 256)
    )


@dataclass(frozen=True, slots=True)
class FlashInferPlan:
    writes: tuple[Tensor, Tensor]
    page_table: tuple[Tensor, ...]
    """Query offsets, page offsets, pages and last-page lengths, as FlashInfer takes them."""


class FlashInferAttention:
    """Every row group, decode or chunk, is a query of one ragged prefill call over the pages."""

    def __init__(self, kv_cache: Tensor, windows: Sequence[int | None]) -> None:
        import flashinfer

        self._kv_cache = kv_cache
        self._windows = tuple(windows)
        self._writer = KvWriter(kv_cache)
        # A wrapper's plan is copied to the device from pinned memory of its own, asynchronously:
        # with two steps in flight, planning the next with it would write under that copy.
        self._wrapper_sets: list[dict[int | None, Any]] = [
            {
                window: flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                    torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=kv_cache.device),
                    kv_layout="HND",
                )
                for window in set(self._windows)
            }
            for _ in range(_NUM_PLANS)
        ]
        self._planned: FlashInferPlan | None = None

    def plan(self, batch: AttentionBatch) -> FlashInferPlan:
        return FlashInferPlan(self._writer.plan(batch), self._page_table(batch))

    def run(self, plan: FlashInferPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._writer.run(plan.writes, layer, k, v)
        if self._planned is not plan:
            # Also for a step that was parked between layers while others took its wrappers.
            self._plan_wrappers(plan, q)
        wrapper = self._wrapper_sets[0][self._windows[layer]]
        out: Tensor = wrapper.run(q.contiguous(), self._kv_cache[layer])
        return out.flatten(1)

    def _page_table(self, batch: AttentionBatch) -> tuple[Tensor, ...]:
        block_size = self._kv_cache.shape[4]
        decode_lens = batch.decode_context_lens.tolist()
        context_lens = decode_lens + [chunk.context_len for chunk in batch.chunks]
        query_lens = [1] * len(decode_lens) + [chunk.num_tokens for chunk in batch.chunks]
        num_pages = [-(-length // block_size) for length in context_lens]
        pages = [
            batch.decode_block_tables[row, : num_pages[row]] for row in range(len(decode_lens))
        ] + [chunk.block_ids for chunk in batch.chunks]
        last = [
            length - (n - 1) * block_size for length, n in zip(context_lens, num_pages, strict=True)
        ]
        arrays = (
            np.cumsum([0, *query_lens], dtype=np.int32),
            np.cumsum([0, *num_pages], dtype=np.int32),
            np.concatenate(pages).astype(np.int32),
            np.asarray(last, dtype=np.int32),
        )
        return tuple(torch.from_numpy(array) for array in arrays)

    def _plan_wrappers(self, plan: FlashInferPlan, q: Tensor) -> None:
        _, _, _, num_kv_heads, block_size, head_dim = self._kv_cache.shape
        self._wrapper_sets.append(self._wrapper_sets.pop(0))
        for window, wrapper in self._wrapper_sets[0].items():
            wrapper.plan(
                *plan.page_table,
                q.shape[1],
                num_kv_heads,
                head_dim,
                block_size,
                causal=True,
                window_left=-1 if window is None else window - 1,
                q_data_type=q.dtype,
                kv_data_type=self._kv_cache.dtype,
            )
        self._planned = plan
