"""Paged attention with FlashInfer on CUDA. Optional, and used where it is installed.

Unproven on hardware: written from FlashInfer's public documentation.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBatch
from omniserve.devices.flashinfer_decodes import FlashInferDecodes
from omniserve.devices.kv_write import KvWriter
from omniserve.devices.page_table import PageTable

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
    query_offsets: Tensor
    page_table: PageTable


class FlashInferAttention:
    """Every row group, decode or chunk, is a query of one ragged prefill call over the pages."""

    def __init__(self, kv_cache: Tensor, windows: Sequence[int | None], num_heads: int) -> None:
        import flashinfer

        self._kv_cache = kv_cache
        self._num_heads = num_heads
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
        self._static_workspace: Tensor | None = None

    def plan(self, batch: AttentionBatch) -> FlashInferPlan:
        query_lens = [1] * batch.num_decodes + [chunk.num_tokens for chunk in batch.chunks]
        return FlashInferPlan(
            self._writer.plan(batch),
            torch.from_numpy(np.cumsum([0, *query_lens], dtype=np.int32)),
            PageTable.of(batch, self._kv_cache.shape[4]),
        )

    def run(self, plan: FlashInferPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._writer.run(plan.writes, layer, k, v)
        if self._planned is not plan:
            # Also for a step that was parked between layers while others took its wrappers.
            self._plan_wrappers(plan, q)
        wrapper = self._wrapper_sets[0][self._windows[layer]]
        out: Tensor = wrapper.run(q.contiguous(), self._kv_cache[layer])
        return out.flatten(1)

    def context_size(self, batch: AttentionBatch) -> int:
        """One for all: the kernels take contexts of any length."""
        return 0

    def static_decodes(self, padding: AttentionBatch, context_size: int) -> FlashInferDecodes:
        if self._static_workspace is None:
            # One for all: they run one after the other, and leave nothing there for later.
            self._static_workspace = torch.empty(
                _WORKSPACE_BYTES, dtype=torch.uint8, device=self._kv_cache.device
            )
        return FlashInferDecodes(
            self._kv_cache, self._windows, self._num_heads, padding, self._static_workspace
        )

    def _plan_wrappers(self, plan: FlashInferPlan, q: Tensor) -> None:
        _, _, _, num_kv_heads, block_size, head_dim = self._kv_cache.shape
        self._wrapper_sets.append(self._wrapper_sets.pop(0))
        for window, wrapper in self._wrapper_sets[0].items():
            wrapper.plan(
                plan.query_offsets,
                *plan.page_table,
                self._num_heads,
                num_kv_heads,
                head_dim,
                block_size,
                causal=True,
                window_left=-1 if window is None else window - 1,
                q_data_type=q.dtype,
                kv_data_type=self._kv_cache.dtype,
            )
        self._planned = plan
